"""LoRA linear layers as one autograd step, which takes fewer operations and copies.

y = x W^T + b + s (x A^T) B^T (arXiv 2106.09685). PEFT computes the same in about ten operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lora_chat.models.quantization.dequantize import get_buffered_dense_weight, is_int8_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peft.tuners.lora import LoraLayer


class FusedLoraFunction(torch.autograd.Function):
    """LoRA layer: x (tokens, in), weight (out, in), lora_a (rank, in), lora_b (out, rank) -> (tokens, out)."""

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
        """Return the output. `weight` returns the dense weight, so that it need not be saved for the gradient."""
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        low_rank = x @ a.T
        ctx.save_for_backward(x, a, b, low_rank)
        ctx.scale, ctx.weight, ctx.dtypes = scale, weight, (lora_a.dtype, lora_b.dtype)
        return torch.nn.functional.linear(x, weight(), bias).addmm_(low_rank, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, lora_a and lora_b."""
        x, a, b, low_rank = ctx.saved_tensors
        grad_out = gradients[0]
        # Through the scaled product with B, then with A.
        grad_low_rank = (grad_out @ b) * ctx.scale
        grad_a = (grad_low_rank.T @ x).to(ctx.dtypes[0])
        grad_b = ((grad_out.T @ low_rank) * ctx.scale).to(ctx.dtypes[1])
        # The gradient of x is the sum of the frozen layer's part and of LoRA's part.
        grad_x = (grad_out @ ctx.weight()).addmm_(grad_low_rank, a) if ctx.needs_input_grad[0] else None
        return grad_x, grad_a, grad_b, None, None, None


@contextmanager
def fused_lora(model: torch.nn.Module) -> Iterator[int]:
    """Use FusedLoraFunction in each layer that it covers until the block ends. Yield the number of these layers.

    Dropout, DoRA, Conv1D and adapters with a bias keep PEFT's own forward. 8-bit layers multiply with their dequantized
    weights, as LLM.int8 does in training on a CPU; on a GPU it would round activations too, and wait for the device.
    """
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and not lora_unfused_reason(m)]
    with replaced_forwards(layers, _make_forward) as covered:
        yield covered


@contextmanager
def replaced_forwards(
    layers: "Sequence[torch.nn.Module]", make_forward: "Callable[[torch.nn.Module], Callable[..., torch.Tensor]]"
) -> Iterator[int]:
    """Replace the forward of each layer by the one from `make_forward` until the block ends. Yield their number."""
    for layer in layers:
        layer.forward = make_forward(layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward  # the forward of the class becomes visible again


def lora_unfused_reason(layer: "LoraLayer") -> str:
    """Return why FusedLoraFunction does not compute this layer's output; empty if it does."""
    base = getattr(layer, "base_layer", None)
    if not hasattr(layer, "lora_A") or not isinstance(base, torch.nn.Linear):
        return "a linear layer without LoRA, or LoRA on another kind of layer"
    kind = type(base).__name__
    if kind not in ("Linear", "Linear4bit", "Linear8bitLt"):
        return f"layers of type {kind}"
    if list(layer.lora_A) != ["default"] or list(layer.active_adapters) != ["default"] or layer.merged:
        return "several adapters"
    if layer.lora_variant:
        return "DoRA"
    if base.bias is not None and base.bias.requires_grad:
        return "a trained bias"
    if layer.lora_bias["default"]:
        return "an adapter with a bias"
    if not isinstance(layer.lora_dropout["default"], torch.nn.Identity):
        return "the adapter's dropout"
    return ""


def _make_forward(layer: "LoraLayer") -> "Callable[..., torch.Tensor]":
    """Return the fused forward of a PEFT layer."""
    stock = layer.forward
    base = layer.base_layer
    dtype = None if is_int8_linear(base) else getattr(base, "compute_dtype", None) or base.weight.dtype

    def forward(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if args or kwargs or layer.disable_adapters or not torch.is_grad_enabled() or dtype not in (None, x.dtype):
            return stock(x, *args, **kwargs)  # type: ignore[no-any-return]
        flat = x.reshape(-1, x.shape[-1])

        def weight() -> torch.Tensor:
            return get_buffered_dense_weight(base, flat.dtype)

        bias = None if base.bias is None else base.bias.to(flat.dtype)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        y: torch.Tensor = FusedLoraFunction.apply(flat, a, b, layer.scaling["default"], weight, bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)

    return forward
