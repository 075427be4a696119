"""Forwards of quantized layers on a CPU that dequantize their weight into a shared buffer for each product."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lora_chat.models.quantization.dequantize import (
    assign_shared_buffer,
    get_buffered_dense_weight,
    is_dequantized_on_the_fly,
    is_int8_linear,
    is_int8_on_gpu,
    layer_kind,
    shared_buffer,
)


def dequantize_on_the_fly(model: torch.nn.Module, *, every_layer: bool = False) -> int:
    """Replace the forward of 4-bit layers permanently, and return their number. Results are equal to bitsandbytes'.

    The first layer of each kind keeps bitsandbytes' forward, unless `every_layer` is set.
    """
    layers = [layer for layer in _select_layers(model, every_layer=every_layer) if not is_int8_linear(layer)]
    if layers:
        dtype: Any = model.dtype
        assign_shared_buffer(
            [m for m in model.modules() if is_dequantized_on_the_fly(m) and not is_int8_linear(m)], dtype
        )
    for layer in layers:
        layer.forward = _make_forward(layer)
    return len(layers)


@contextmanager
def dequantizing_on_the_fly(model: torch.nn.Module) -> Iterator[int]:
    """Replace the forward of 4-bit and 8-bit layers until the block ends, and yield their number.

    On a CPU, bitsandbytes' forward fragments memory by as much as all dense weights together, and is far slower in 8
    bits. On a GPU, only 8-bit layers are replaced, because there bitsandbytes rounds activations too.
    """
    layers = [*_select_layers(model), *(module for module in model.modules() if is_int8_on_gpu(module))]
    with shared_buffer(model):
        for layer in layers:
            layer.forward = _make_forward(layer)
        try:
            yield len(layers)
        finally:
            for layer in layers:
                del layer.forward  # restores the method of the class


def _select_layers(model: torch.nn.Module, *, every_layer: bool = False) -> list[Any]:
    """Return the quantized layers whose forward is not replaced yet.

    The first of each kind is left out unless `every_layer` is set, so that the check before training compares the
    replaced forwards with bitsandbytes'.
    """
    chosen: list[Any] = []
    kinds = set()
    for name, module in model.named_modules():
        kind = layer_kind(name)
        if is_dequantized_on_the_fly(module) and (every_layer or kind in kinds) and "forward" not in vars(module):
            chosen.append(module)
        kinds.add(kind)
    return chosen


class _FrozenMatmul(torch.autograd.Function):
    """x (..., in) -> (..., out); the weight is dequantized for each product and not saved for backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer  # the layer, not its dense weight, is kept for backward
        return torch.nn.functional.linear(x, get_buffered_dense_weight(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        grad_out: torch.Tensor = gradients[0]
        # The weight is frozen, so only x has a gradient: (..., out) @ (out, in).
        return grad_out @ get_buffered_dense_weight(ctx.layer, grad_out.dtype), None


def _make_forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a forward that computes in the layer's compute dtype and returns the dtype of its input."""
    dtype = getattr(layer, "compute_dtype", None)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _FrozenMatmul.apply(x.to(dtype or x.dtype), layer)  # type: ignore[no-untyped-call]
        return (y if layer.bias is None else y + layer.bias.to(y.dtype)).to(x.dtype)

    return forward
