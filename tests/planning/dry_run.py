"""Dry run of a real PEFT model on the meta device: one micro-batch of training with every live byte counted.

It measures the allocations of a GPU without a GPU and without weights. bitsandbytes' products, flash attention and
autocast are replaced by stand-ins that allocate and save the same bytes. It is the reference for
lora_chat.planning.training_memory.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import bitsandbytes as bnb
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from lora_chat.config.recipe import AdapterSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.training.fast_path.attention import interface
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.attention.varlen_kernel import VarlenKernel
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers
from lora_chat.training.fast_path.lm_head_loss import find_lm_head, split_supervised

_BLOCK = 512
"""Block size of the CUDA allocator, in bytes."""


class LiveBytes(TorchDispatchMode):
    """Counter of the bytes of live storages and of their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.phase = "weights"
        """`weights`, then `forward`, then `backward` of the last layer, then `earlier` layers."""
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """Add a tensor's storage unless it is known; subtract it when nothing refers to it."""
        storage = tensor.untyped_storage()
        if storage in self._known or tensor.device.type != "meta":  # not in GPU memory
            return
        self._known[storage] = True
        self.add(storage.nbytes(), 1)
        weakref.finalize(storage, self.add, storage.nbytes(), -1)

    def add(self, size: int, times: int) -> None:
        """Add (1) or subtract (-1) a storage of `size` bytes."""
        self.now += times * -(-size // _BLOCK) * _BLOCK
        self.peak = max(self.peak, self.now)

    def enter(self, phase: str) -> None:
        """Begin another part of the step."""
        self.phase = phase


_TO_BF16 = {torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.addmm}
_TO_BF16 |= {torch.bmm, torch.baddbmm, torch.mm, torch.Tensor.mm}
_TO_FP32 = {torch.nn.functional.layer_norm, torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax}
_TO_FP32 |= {torch.pow, torch.Tensor.pow, torch.rsqrt, torch.Tensor.rsqrt, torch.sum, torch.Tensor.sum, torch.exp}
_TO_FP32 |= {torch.Tensor.exp, torch.nn.functional.softplus, torch.Tensor.__pow__}


class Autocast(TorchFunctionMode):
    """CUDA's autocast to bf16, for the operations in these models (pytorch.org/docs/stable/amp.html)."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, torch.Tensor] | None = {}
        """Casts of trained weights, cached until the forward pass ends; None in the backward pass."""
        self.off = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.off or not (func in _TO_BF16 or func in _TO_FP32):
            return func(*args, **kwargs)
        dtype = torch.bfloat16 if func in _TO_BF16 else torch.float32
        self.off += 1
        try:
            return func(*(self._cast(a, dtype) for a in args), **{k: self._cast(v, dtype) for k, v in kwargs.items()})
        finally:
            self.off -= 1

    @contextmanager
    def setting(self, *args: Any, enabled: bool = True, **kwargs: Any) -> Iterator[None]:
        """Replace torch.autocast, which does not support the meta device."""
        self.off += not enabled
        yield
        self.off -= not enabled

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point or value.dtype == dtype:
            return value
        if self.cache is None or not (isinstance(value, torch.nn.Parameter) and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.cache:
            self.cache[id(value)] = value.to(dtype)
        return self.cache[id(value)]


class _Nf4Product(torch.autograd.Function):
    """Stand-in for bitsandbytes' MatMul4Bit, which dequantizes for each product and saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, _dense(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ _dense(ctx.layer, gradients[0].dtype), None


def _frozen_weight(layer: Any, dtype: Any = None) -> torch.Tensor:
    quantized = isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    return _dense(layer, torch.bfloat16) if quantized else layer.weight.detach()


def _dense(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    scales = torch.empty(layer.in_features * layer.out_features // 64, device="meta")  # of double quantisation
    dense = torch.empty(layer.out_features, layer.in_features, dtype=dtype, device="meta")
    del scales
    return dense


class Linear4bit(bnb.nn.Linear4bit):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Nf4Product.apply(x.to(self.compute_dtype), self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Int8Product(torch.autograd.Function):
    """Stand-in for bitsandbytes' MatMul8bitLt, which rounds states to int8, adds in int32 and saves its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer, ctx.x = layer, x
        flat = x.reshape(-1, x.shape[-1])
        half = flat.to(torch.float16)
        rounded = torch.empty_like(half, dtype=torch.int8)
        del half
        sums = torch.empty(flat.shape[0], layer.out_features, dtype=torch.int32, device="meta")
        y = torch.empty_like(sums, dtype=x.dtype)
        del sums, rounded
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        layer, gradient = ctx.layer, gradients[0]
        dense = torch.empty(layer.out_features, layer.in_features, dtype=gradient.dtype, device="meta")
        return gradient @ dense, None


class Linear8bitLt(bnb.nn.Linear8bitLt):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Int8Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Attention(torch.autograd.Function):
    """Stand-in for PyTorch's fused attention, which saves its inputs, its output and a sum for every query."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
        result = torch.empty_like(q.transpose(1, 2).contiguous()).transpose(1, 2)
        sums = torch.empty(q.shape[:-1], dtype=torch.float32, device="meta")
        bias = None if mask is None else mask.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, sums, bias)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


def _sdpa(query: Any, key: Any, value: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
    result: torch.Tensor = _Attention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return result


class _RmsNorm(torch.autograd.Function):
    """Stand-in for PyTorch's fused RMS norm, which saves the states and one number for each token."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: Any, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, torch.empty(x.shape[:-1], dtype=torch.float32, device="meta"))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.empty_like(ctx.saved_tensors[0]), None, None


def _rms_norm(x: torch.Tensor, size: Any, eps: float) -> torch.Tensor:
    result: torch.Tensor = _RmsNorm.apply(x, size, eps)  # type: ignore[no-untyped-call]
    return result


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
        kind = Linear4bit if setting.mode == "4bit" else Linear8bitLt
        _quantize(model, kind)
        setattr(model, "is_loaded_in_" + setting.mode, True)
        model.is_quantized = True
    return model


def _quantize(model: Any, kind: Any) -> None:
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear | Conv1D) or module is head:
            continue
        conv = isinstance(module, Conv1D)
        in_features, out_features = module.weight.shape if conv else module.weight.shape[::-1]
        bias = module.bias is not None
        if kind is Linear4bit:
            new = Linear4bit(in_features, out_features, bias=bias, compute_dtype=torch.bfloat16)
            # 4 bits a weight, one byte for 64 weights, one float for 256 of these
            count = in_features * out_features
            size = -(-count // 2) + -(-count // 64) + 4 * -(-count // (64 * 256)) + 1024 + 64
        else:
            new = Linear8bitLt(in_features, out_features, bias=bias, has_fp16_weights=False)
            size = in_features * out_features + 4 * out_features
        weight: Any = torch.nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        weight.compress_statistics, weight.quant_type, weight.blocksize = True, "nf4", 64  # PEFT copies these
        new.weight = weight
        if bias:
            empty = torch.empty(out_features, dtype=torch.bfloat16, device="meta")
            new.bias = torch.nn.Parameter(empty, requires_grad=False)
        model.set_submodule(name, new)


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
    yield patch("torch.nn.functional.scaled_dot_product_attention", _sdpa)
    yield patch("torch.autocast", autocast.setting)
    yield patch("transformers.masking_utils._ignore_causal_mask_sdpa", lambda *a, **k: not setting.padded)
    yield patch("transformers.masking_utils.find_packed_sequence_indices", lambda *a, **k: None)
    yield patch("lora_chat.training.fast_path.layers.lora_group.get_buffered_dense_weight", _frozen_weight)
    yield patch("lora_chat.training.fast_path.fused_lora.get_buffered_dense_weight", _frozen_weight)
    # Tensors without values cannot be compared, so the kernel is not chosen by a try.
    kernel = VarlenKernel(varlen_attn, frozenset(inspect.signature(varlen_attn).parameters), expands_keys=False)
    yield patch("lora_chat.training.fast_path.attention.gpu.find_varlen_kernel", lambda *a: kernel)
    yield patch("lora_chat.training.fast_path.layers.rms_norm.stock_rms_norm", _rms_norm)
    yield patch("torch.is_autocast_enabled", lambda *a: setting.learns)  # PEFT asks
