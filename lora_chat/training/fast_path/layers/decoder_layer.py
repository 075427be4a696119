"""Selection of the decoder layers that the fast path covers, and their fused forward during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_chat.models.architectures import find_fused_architecture
from lora_chat.models.text_layers import find_text_prefix
from lora_chat.training.fast_path.attention.backends import AttentionLayout, build_attention_layout
from lora_chat.training.fast_path.attention.cpu import HeadConfig
from lora_chat.training.fast_path.fused_lora import lora_unfused_reason, replaced_forwards
from lora_chat.training.fast_path.layers.attention_block import AttentionBlockFunction, AttentionBlockSpec
from lora_chat.training.fast_path.layers.lora_group import LoraGroup
from lora_chat.training.fast_path.layers.mlp_block import MlpBlockFunction
from lora_chat.training.fast_path.layers.qk_norm import QKNorm

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

_ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@contextmanager
def fused_layers(model: torch.nn.Module) -> Iterator[int]:
    """Use the fused forward in each decoder layer that it covers until the block ends. Yield their number."""
    layers = [layer for layer in decoder_layers(model) if not _layer_unfused_reason(layer)]
    with replaced_forwards(layers, _FusedDecoderForward) as covered:
        yield covered


@contextmanager
def recomputed_layers(model: torch.nn.Module) -> Iterator[None]:
    """Recompute the activations of covered kinds of decoder layers until the block ends, also in evaluation mode."""
    # Only these kinds are known to have no dropout of their own, which the training flag of the layer would enable.
    layers = [layer for layer in decoder_layers(model) if find_fused_architecture(type(layer).__name__)]
    names = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
    before = [{name: vars(layer)[name] for name in names if name in vars(layer)} for layer in layers]
    try:
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        yield
    finally:
        for layer, values in zip(layers, before, strict=True):
            for name in names:
                vars(layer).pop(name, None)
            vars(layer).update(values)


def unfused_reason(model: torch.nn.Module) -> str:
    """Return why some decoder layers keep transformers' forward, in a few words; empty if none does."""
    reasons = dict.fromkeys(reason for layer in decoder_layers(model) if (reason := _layer_unfused_reason(layer)))
    return "; ".join(reasons)


def decoder_layers(model: torch.nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the decoder layers of a model; the layers of towers for pictures and sound are no part of the text."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    prefix = find_text_prefix(base) if isinstance(base, PreTrainedModel) else ""
    return [
        module
        for name, module in base.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and name.startswith(prefix)
    ]


def _layer_unfused_reason(layer: "LlamaDecoderLayer") -> str:
    """Return why the fused forward does not compute this layer's output; empty if it does."""
    name = type(layer).__name__
    if find_fused_architecture(name) is None:
        return f"{name} is not supported"
    linears = [
        *(getattr(layer.self_attn, n) for n in _ATTENTION_PROJECTIONS),
        *(getattr(layer.mlp, n) for n in _MLP_PROJECTIONS),
    ]
    for linear in linears:
        if reason := lora_unfused_reason(linear):
            return reason
    if layer.self_attn.config.hidden_act != "silu":
        return f"activation {layer.self_attn.config.hidden_act}"
    if layer.self_attn.attention_dropout:
        return "dropout of attention"
    norms = (layer.input_layernorm, layer.post_attention_layernorm, layer.self_attn)
    norm_weights = [p for norm in norms for name, p in norm.named_parameters() if "norm" in name or norm in norms[:2]]
    return "trained norms" if any(weight.requires_grad for weight in norm_weights) else ""


class _FusedDecoderForward:
    """The fused forward of one decoder layer."""

    def __init__(self, layer: "LlamaDecoderLayer") -> None:
        attention, mlp, config = layer.self_attn, layer.mlp, layer.self_attn.config
        self._layer, self._stock = layer, layer.forward
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._attention = AttentionBlockSpec(
            epsilon=layer.input_layernorm.variance_epsilon,
            heads=HeadConfig(
                num_heads=config.num_attention_heads,
                num_kv_heads=config.num_key_value_heads,
                head_dim=attention.head_dim,
                scale=attention.scaling,
                window=sliding_window(layer),
            ),
            norms=QKNorm(q_norm.weight, k_norm.weight, q_norm.variance_epsilon) if q_norm and k_norm else None,
            qkv_proj=LoraGroup([attention.q_proj, attention.k_proj, attention.v_proj]),
            o_proj=LoraGroup([attention.o_proj]),
        )
        self._gate_up = LoraGroup([mlp.gate_proj, mlp.up_proj])
        self._down = LoraGroup([mlp.down_proj])

    def __call__(self, hidden_states: torch.Tensor, *args: object, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output; calls other than training on one packed row use transformers' forward."""
        cu_seqlens, position_embeddings = kwargs.get("packed_cu_seqlens"), kwargs.get("position_embeddings")
        if (
            args
            or cu_seqlens is None
            or position_embeddings is None
            or not torch.is_grad_enabled()
            or hidden_states.shape[0] != 1
        ):
            return self._stock(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        heads = self._attention.heads
        layout = build_attention_layout(cu_seqlens, int(kwargs.get("shared_prefix", 0)), heads, hidden_states.device)
        # Both halves of a head have the same angles, so one half of cos and sin is enough.
        cos, sin = (states[0, :, None, : heads.head_dim // 2] for states in position_embeddings)
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self._run_blocks(hidden_states[0], cos, sin, layout).unsqueeze(0)

    def _run_blocks(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: AttentionLayout
    ) -> torch.Tensor:
        """Return the output of both blocks for x (tokens, size)."""
        # Each block recomputes by itself, because torch's checkpointing would also compute its last product again.
        recompute = bool(self._layer.gradient_checkpointing and self._layer.training)
        input_norm, post_attention_norm = self._norms
        attention, up, down = self._attention, self._gate_up, self._down
        lora_parameters = [*attention.qkv_proj.parameters, *attention.o_proj.parameters]
        x = AttentionBlockFunction.apply(x, cos, sin, input_norm.weight, attention, layout, recompute, *lora_parameters)  # type: ignore[no-untyped-call]
        lora_parameters = [*up.parameters, *down.parameters]
        y: torch.Tensor = MlpBlockFunction.apply(  # type: ignore[no-untyped-call]
            x, post_attention_norm.weight, post_attention_norm.variance_epsilon, up, down, recompute, *lora_parameters
        )
        return y


def sliding_window(layer: "LlamaDecoderLayer") -> int | None:
    """Return the attention window. Llama's config may name a window that its attention does not use."""
    attention = layer.self_attn
    architecture = find_fused_architecture(type(layer).__name__)
    if architecture is not None and architecture.has_config_window:
        return getattr(attention.config, "sliding_window", None)
    return getattr(attention, "sliding_window", None)
