"""Quantised layers on a CPU that multiply with values made in one place, for one product after the other."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lora_chat.models.quantization.dequantize import (
    assign_shared_buffer,
    get_buffered_dense_weight,
    is_dequantized_on_the_fly,
    is_int8_linear,
    shared_buffer,
)

_LAYER_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


def dequantize_on_the_fly(model: torch.nn.Module, *, every_layer: bool = False) -> int:
    """Do so from now on in layers of 4 bits, whose products are bitsandbytes' bit for bit; returns how many.

    The first of every kind stay bitsandbytes' own, but for `every_layer`.
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
    """Do so in the others too, until the block ends, in training mode or not; yields how many.

    bitsandbytes' own products leave holes as large as all layers' values together, and in 8 bits take far longer.
    """
    layers = _select_layers(model)
    with shared_buffer(model):
        for layer in layers:
            layer.forward = _make_forward(layer)
        try:
            yield len(layers)
        finally:
            for layer in layers:
                del layer.forward  # the class's own comes back


def _select_layers(model: torch.nn.Module, *, every_layer: bool = False) -> list[Any]:
    """All that are quantised and not done so yet, but the first of every kind: a proof that compares with those sees
    whether the values are bitsandbytes' own.
    """
    chosen: list[Any] = []
    kinds = set()
    for name, module in model.named_modules():
        kind = _LAYER_INDEX.sub("", name)
        if is_dequantized_on_the_fly(module) and (every_layer or kind in kinds) and "forward" not in vars(module):
            chosen.append(module)
        kinds.add(kind)
    return chosen


class _FrozenMatmul(torch.autograd.Function):
    """x (..., in) -> (..., out), with a weight that is made for each product and not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, get_buffered_dense_weight(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient: torch.Tensor = gradients[0]
        return gradient @ get_buffered_dense_weight(ctx.layer, gradient.dtype), None


def _make_forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    dtype = getattr(layer, "compute_dtype", None)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _FrozenMatmul.apply(x.to(dtype or x.dtype), layer)  # type: ignore[no-untyped-call]
        return (y if layer.bias is None else y + layer.bias.to(y.dtype)).to(x.dtype)

    return forward
