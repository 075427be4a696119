"""Which decoder layers are covered, and their fused forward in place of transformers' own while training runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_chat.training.fast_path.attention.backends import Layout, find_layout
from lora_chat.training.fast_path.attention.cpu import Heads
from lora_chat.training.fast_path.fused_lora import replaced_forwards, why_not
from lora_chat.training.fast_path.layers.attention_block import Attention, AttentionHalf
from lora_chat.training.fast_path.layers.lora_group import LoraGroup
from lora_chat.training.fast_path.layers.mlp_block import MlpHalf
from lora_chat.training.fast_path.layers.qk_norm import HeadNorms

_COVERED = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""RMS norm, rotary positions, grouped heads (Qwen3's are normed), SiLU-gated MLP, and nothing else."""
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@contextmanager
def fused_layers(model: torch.nn.Module) -> Iterator[int]:
    """Compute covered decoder layers by AttentionHalf and MlpHalf, until the block ends; yields how many."""
    layers: list[Any] = [layer for layer in _decoder_layers(model) if not _why_not_layer(layer)]
    with replaced_forwards(layers, _FusedLayer) as covered:
        yield covered


def why_not_fused(model: torch.nn.Module) -> str:
    """Why some decoder layer keeps transformers' forward, in a few words; empty if none does."""
    reasons = dict.fromkeys(reason for layer in _decoder_layers(model) if (reason := _why_not_layer(layer)))
    return "; ".join(reasons)


def _decoder_layers(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _why_not_layer(layer: Any) -> str:
    name = type(layer).__name__
    if name not in _COVERED:
        return f"{name} is not known here"
    linears = [*(getattr(layer.self_attn, n) for n in _ATTENTION), *(getattr(layer.mlp, n) for n in _MLP)]
    for linear in linears:
        if reason := why_not(linear):
            return reason
    if layer.self_attn.config.hidden_act != "silu":
        return f"activation {layer.self_attn.config.hidden_act}"
    if layer.self_attn.attention_dropout:
        return "dropout of attention"
    return "trained norms" if layer.input_layernorm.weight.requires_grad else ""


class _FusedLayer:
    """The forward of one layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp, config = layer.self_attn, layer.mlp, layer.self_attn.config
        self._layer, self._stock = layer, layer.forward
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        query, key = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._attention = Attention(
            epsilon=layer.input_layernorm.variance_epsilon,
            heads=Heads(
                query=config.num_attention_heads,
                key=config.num_key_value_heads,
                size=attention.head_dim,
                scale=attention.scaling,
                window=_window(layer),
            ),
            norms=HeadNorms(query.weight, key.weight, query.variance_epsilon) if query and key else None,
            projections=LoraGroup([attention.q_proj, attention.k_proj, attention.v_proj]),
            output=LoraGroup([attention.o_proj]),
        )
        self._gate_up = LoraGroup([mlp.gate_proj, mlp.up_proj])
        self._down = LoraGroup([mlp.down_proj])

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        edges, positions = kwargs.get("segment_edges"), kwargs.get("position_embeddings")
        if args or edges is None or positions is None or not torch.is_grad_enabled() or hidden_states.shape[0] != 1:
            return self._stock(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        heads = self._attention.heads
        layout = find_layout(edges, int(kwargs.get("shared_prefix", 0)), heads, hidden_states.device)
        cos, sin = (states[0, :, None, : heads.size // 2] for states in positions)
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self._both_halves(hidden_states[0], cos, sin, layout).unsqueeze(0)

    def _both_halves(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: Layout) -> torch.Tensor:
        # Checkpointing is the halves' own business: torch's would compute the last product of each again.
        again = bool(self._layer.gradient_checkpointing and self._layer.training)
        before, after = self._norms
        attention, up, down = self._attention, self._gate_up, self._down
        trained = [*attention.projections.parameters, *attention.output.parameters]
        x = AttentionHalf.apply(x, cos, sin, before.weight, attention, layout, again, *trained)  # type: ignore[no-untyped-call]
        trained = [*up.parameters, *down.parameters]
        y: torch.Tensor = MlpHalf.apply(  # type: ignore[no-untyped-call]
            x, after.weight, after.variance_epsilon, up, down, again, *trained
        )
        return y


def _window(layer: Any) -> int | None:
    """Llama's config may name a window that its attention does not use."""
    attention = layer.self_attn
    if type(layer).__name__ == "MistralDecoderLayer":
        return getattr(attention.config, "sliding_window", None)
    return getattr(attention, "sliding_window", None)
