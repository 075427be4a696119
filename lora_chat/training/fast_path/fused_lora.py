"""LoRA linear layers as one autograd step: fewer operations and copies.

y = x W^T + b + s (x A^T) B^T (arXiv 2106.09685). PEFT computes the same in about ten operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lora_chat.models.quantization.dequantize import get_buffered_dense_weight, is_int8_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class FusedLoraFunction(torch.autograd.Function):
    """x (tokens, in), weight (out, in), lora_a (rank, in), lora_b (out, rank) -> (tokens, out)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scale: float,
        weight: "Callable[[], torch.Tensor]",
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        low_rank = x @ a.T
        ctx.save_for_backward(x, a, b, low_rank)
        ctx.scale, ctx.weight, ctx.dtypes = scale, weight, (lora_a.dtype, lora_b.dtype)
        return torch.nn.functional.linear(x, weight(), bias).addmm_(low_rank, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, a, b, low_rank = ctx.saved_tensors
        grad_out: torch.Tensor = gradients[0]
        grad_low_rank = (grad_out @ b) * ctx.scale
        grad_a = (grad_low_rank.T @ x).to(ctx.dtypes[0])
        grad_b = ((grad_out.T @ low_rank) * ctx.scale).to(ctx.dtypes[1])
        grad_x = (grad_out @ ctx.weight()).addmm_(grad_low_rank, a) if ctx.needs_input_grad[0] else None
        return grad_x, grad_a, grad_b, None, None, None


@contextmanager
def fused_lora(model: torch.nn.Module) -> Iterator[int]:
    """Use FusedLoraFunction wherever it covers the layer, until the block ends; yields how many layers it covers.

    Dropout, DoRA, Conv1D, 8-bit layers on a GPU and adapters with a bias keep PEFT's own forward.
    """
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "lora_A") and not lora_unfused_reason(m)]
    with replaced_forwards(layers, _make_forward) as covered:
        yield covered


@contextmanager
def replaced_forwards(
    layers: "Sequence[Any]", make_forward: "Callable[[Any], Callable[..., torch.Tensor]]"
) -> Iterator[int]:
    """Give each layer the forward that `make_forward` makes for it, until the block ends; yields how many."""
    for layer in layers:
        layer.forward = make_forward(layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward  # the class's own comes back


def lora_unfused_reason(layer: Any) -> str:
    """Why FusedLoraFunction does not compute what PEFT would for this layer; empty if it does."""
    base = getattr(layer, "base_layer", None)
    if not hasattr(layer, "lora_A") or not isinstance(base, torch.nn.Linear):
        return "a linear layer without LoRA, or LoRA on another kind of layer"
    kind = type(base).__name__
    if kind not in ("Linear", "Linear4bit", "Linear8bitLt"):
        return f"layers of type {kind}"
    if is_int8_linear(base) and base.weight.device.type != "cpu":
        return "LLM.int8 rounds activations too"  # on a CPU it does so outside training alone
    if list(layer.lora_A) != ["default"] or list(layer.active_adapters) != ["default"] or layer.merged:
        return "several adapters"
    if layer.lora_variant:
        return "DoRA"
    if layer.lora_bias["default"]:
        return "an adapter with a bias"
    if not isinstance(layer.lora_dropout["default"], torch.nn.Identity):
        return "the adapter's dropout"
    return ""


def _make_forward(layer: Any) -> "Callable[..., torch.Tensor]":
    stock = layer.forward
    base = layer.base_layer
    dtype = None if is_int8_linear(base) else getattr(base, "compute_dtype", None) or base.weight.dtype

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or layer.disable_adapters or not torch.is_grad_enabled() or dtype not in (None, x.dtype):
            return stock(x, *args, **kwargs)  # type: ignore[no-any-return]
        flat = x.reshape(-1, x.shape[-1])

        def weight() -> torch.Tensor:
            return get_buffered_dense_weight(base, flat.dtype)  # type: ignore[no-any-return]

        bias = None if base.bias is None else base.bias.to(flat.dtype)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        y: torch.Tensor = FusedLoraFunction.apply(flat, a, b, layer.scaling["default"], weight, bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)

    return forward
