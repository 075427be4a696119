"""Dry run of a real PEFT model on the meta device: one micro-batch of training with every live byte counted.

It measures the allocations of a GPU without a GPU and without weights. bitsandbytes' products, flash attention and
autocast are replaced by stand-ins that allocate and save the same bytes. It is the reference for
lora_chat.planning.training_memory.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_chat.config.recipe import AdapterSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.planning.dry_run.autocast import Autocast
from lora_chat.planning.dry_run.kernels import fused_attention, fused_rms_norm
from lora_chat.planning.dry_run.live_bytes import LiveBytes
from lora_chat.planning.dry_run.quantized_layers import Linear4bit, Linear8bitLt, make_dense_weight, quantize
from lora_chat.training.fast_path.attention import interface
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.attention.varlen_kernel import VarlenKernel
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers
from lora_chat.training.fast_path.lm_head_loss import find_lm_head, split_supervised


def _frozen_weight(layer: Any, dtype: Any = None) -> torch.Tensor:
    quantized = isinstance(layer, Linear4bit | Linear8bitLt)
    return make_dense_weight(layer, torch.bfloat16) if quantized else layer.weight.detach()


class _TrlHead(torch.autograd.Function):
    """Stand-in for TRL's GPU head (trl/kernels/chunked_logprob.py), which recomputes bf16 tiles of logits."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        figures = [torch.empty(hidden.shape[0], device="meta") for _ in range(9)]
        ctx.save_for_backward(hidden, figures[0], figures[1])
        _tile(hidden)
        return figures[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        hidden = ctx.saved_tensors[0]
        sums = torch.empty(hidden.shape, dtype=torch.float32, device="meta")
        _tile(hidden)
        return sums.to(hidden.dtype), None


def _tile(hidden: torch.Tensor) -> None:
    rows = min(hidden.shape[0], 4096)
    tile = torch.empty(rows, 32768, dtype=torch.bfloat16, device="meta")
    states = hidden[:rows].to(torch.bfloat16)
    del tile, states


@dataclass(frozen=True)
class Setting:
    """The settings of one dry run."""

    config: Any
    """transformers' config."""
    mode: str = "4bit"
    rank: int = 16
    rows: int = 1
    """Dialogues in the micro-batch."""
    length: int = 1024
    """Tokens of each dialogue."""
    supervised: int = 512
    """Supervised tokens of all rows."""
    checkpointed: int | bool = False
    fast_path: bool = True
    padded: bool = False
    """Whether rows on the stock path differ in length, so that attention needs a mask."""
    learns: bool = True
    """Whether to train; otherwise the model only reads, without gradients, as in an evaluation."""
    moment_bytes: int = 8
    """Bytes of the optimizer's moments, for each trained weight."""


@dataclass(frozen=True)
class Measured:
    """Measured bytes."""

    static: int
    """Bytes of frozen and trained weights."""
    forward: int
    """Peak of the forward pass up to the head."""
    loss: int
    """Bytes before the backward pass."""
    peak: int
    end: int
    """Bytes after the step: weights, gradients, optimizer."""


def dry_run(setting: Setting, live: LiveBytes | None = None) -> Measured:
    """Build the model and run forward and backward beside the optimizer's state; `live` counts every byte."""
    live, autocast = live or LiveBytes(), Autocast()
    interface._block_diagonal_mask.cache_clear()
    with ExitStack() as stack:
        for change in _patches(setting, autocast):
            stack.enter_context(change)
        with torch.device("meta"):
            peft = attach_adapter(_build(setting), AdapterSection(rank=setting.rank, alpha=32))
        peft.train()
        _checkpoint(peft, setting, autocast)
        if setting.checkpointed and not setting.fast_path:
            peft.enable_input_require_grads()
        for tensor in (*peft.parameters(), *peft.buffers()):
            live.count(tensor)
        trained = [p for p in peft.parameters() if p.requires_grad]
        static = live.now
        # The optimizer has two moments after its first step.
        optimizer = [torch.empty(setting.moment_bytes * p.numel(), dtype=torch.uint8, device="meta") for p in trained]
        for tensor in optimizer:
            live.count(tensor)
        live.enter("forward")
        _layers(peft)[-2].register_forward_hook(_switch_phase(live))
        if not setting.learns:
            return _read(peft, setting, live, static)
        with live:
            with autocast:
                loss = _fast_forward(peft, setting, stack) if setting.fast_path else _stock_forward(peft, setting)
            live.enter("between")
            autocast.cache = None
            before_backward, forward = live.now, live.peak
            live.enter("backward")
            torch.autograd.backward([loss], [torch.ones_like(loss)])
            del loss
        return Measured(static, forward, before_backward, live.peak, live.now)


def _read(peft: Any, setting: Setting, live: LiveBytes, static: int) -> Measured:
    for parameter in peft.parameters():
        if parameter.requires_grad:  # training rounds them at its end
            parameter.data = parameter.data.to(torch.bfloat16)
            live.count(parameter)
    live.enter("forward")
    with live, torch.no_grad():
        ids = torch.empty(setting.rows, setting.length, dtype=torch.int64, device="meta")
        mask = torch.ones_like(ids) if setting.padded else None
        hidden = peft.get_base_model().base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        live.enter("between")
        before_backward = live.now
        live.enter("backward")
        del hidden
    return Measured(static, live.peak, before_backward, live.peak, live.now)


def _switch_phase(live: LiveBytes) -> Callable[..., None]:
    """Return a hook that switches the phase when the gradient of a layer's output is computed."""

    def hook(layer: Any, inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if states.requires_grad and live.phase == "forward":
            states.register_hook(lambda _: live.enter("earlier"))

    return hook


def _layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _build(setting: Setting) -> Any:
    config = setting.config
    fast = register_packed_attention() if setting.fast_path else "sdpa"
    config._attn_implementation = "eager" if getattr(config, "attn_logit_softcapping", None) else fast
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.requires_grad_(False)
    if setting.mode != "none":
        quantize(model, setting.mode)
    return model


def _stock_forward(peft: Any, setting: Setting) -> torch.Tensor:
    """Run batched rows through transformers' layers and TRL's head."""
    base = peft.get_base_model()
    ids = torch.empty(setting.rows, setting.length, dtype=torch.int64, device="meta")
    mask = torch.ones_like(ids) if setting.padded else None
    hidden = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    indices = [torch.zeros(setting.supervised, dtype=torch.int64, device="meta") for _ in range(2)]
    selected = hidden[:, :-1][indices[0], indices[1]]
    figures: torch.Tensor = _TrlHead.apply(selected, base.get_output_embeddings().weight)  # type: ignore[no-untyped-call]
    return figures


def _fast_forward(peft: Any, setting: Setting, stack: ExitStack) -> torch.Tensor:
    """Run one packed row through the fused layers and the fast path's head."""
    tokens = setting.rows * setting.length
    cu_seqlens = tuple(range(0, tokens + 1, setting.length))
    head = find_lm_head(peft)
    batch = {
        "input_ids": torch.empty(1, tokens, dtype=torch.int64, device="meta"),
        "labels": torch.empty(1, tokens, dtype=torch.int64, device="meta"),
        "position_ids": torch.empty(1, tokens, dtype=torch.int64, device="meta"),
        "supervised": torch.empty(setting.supervised, dtype=torch.int64, device="meta"),
        "packed_cu_seqlens": cu_seqlens,
    }
    stack.enter_context(fused_lora(peft))
    stack.enter_context(fused_layers(peft))
    if head is not None:
        return head.loss(batch, setting.supervised)
    keep, ids, rest = split_supervised(batch)
    logits = peft(**rest, logits_to_keep=keep, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0].float(), ids, reduction="sum") / setting.supervised


def _checkpoint(peft: Any, setting: Setting, autocast: Autocast) -> None:
    if not setting.checkpointed:
        return
    recompute = {"context_fn": lambda: (nullcontext(), autocast)}
    peft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **recompute})
    for number, layer in enumerate(_layers(peft)):
        layer.gradient_checkpointing = setting.checkpointed is True or number < setting.checkpointed


def _patches(setting: Setting, autocast: Autocast) -> Iterator[Any]:
    yield patch("torch.nn.functional.scaled_dot_product_attention", fused_attention)
    yield patch("torch.autocast", autocast.setting)
    yield patch("transformers.masking_utils._ignore_causal_mask_sdpa", lambda *a, **k: not setting.padded)
    yield patch("transformers.masking_utils.find_packed_sequence_indices", lambda *a, **k: None)
    yield patch("lora_chat.training.fast_path.layers.lora_group.get_buffered_dense_weight", _frozen_weight)
    yield patch("lora_chat.training.fast_path.fused_lora.get_buffered_dense_weight", _frozen_weight)
    # Tensors without values cannot be compared, so the kernel is not chosen by a try.
    kernel = VarlenKernel(varlen_attn, frozenset(inspect.signature(varlen_attn).parameters), expands_keys=False)
    yield patch("lora_chat.training.fast_path.attention.gpu.find_varlen_kernel", lambda *a: kernel)
    yield patch("lora_chat.training.fast_path.layers.rms_norm.stock_rms_norm", fused_rms_norm)
    yield patch("torch.is_autocast_enabled", lambda *a: setting.learns)  # PEFT asks
