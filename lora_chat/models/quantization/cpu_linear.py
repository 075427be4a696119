"""Quantised layers on a CPU that multiply with values made in one place, for one product after the other."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lora_chat.models.quantization.dequantize import is_int8, is_made_anew, passing_weight, share_room, shared_room

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def multiply_in_one_place(model: torch.nn.Module, *, every_layer: bool = False) -> int:
    """Do so from now on in layers of 4 bits, whose products are bitsandbytes' bit for bit; returns how many.

    The first of every kind stay bitsandbytes' own, but for `every_layer`.
    """
    layers = [layer for layer in _choose_layers(model, every_layer=every_layer) if not is_int8(layer)]
    if layers:
        dtype: Any = model.dtype
        share_room([m for m in model.modules() if is_made_anew(m) and not is_int8(m)], dtype)
    for layer in layers:
        layer.forward = _make_forward(layer)
    return len(layers)


@contextmanager
def dense_products(model: torch.nn.Module) -> Iterator[int]:
    """Do so in the others too, until the block ends, in training mode or not; yields how many.

    bitsandbytes' own products leave holes as large as all layers' values together, and in 8 bits take far longer.
    """
    layers = _choose_layers(model)
    with shared_room(model):
        for layer in layers:
            layer.forward = _make_forward(layer)
        try:
            yield len(layers)
        finally:
            for layer in layers:
                del layer.forward  # the class's own comes back


def _choose_layers(model: torch.nn.Module, *, every_layer: bool = False) -> list[Any]:
    """All that are quantised and not done so yet, but the first of every kind: a proof that compares with those sees
    whether the values are bitsandbytes' own.
    """
    chosen: list[Any] = []
    kinds = set()
    for name, module in model.named_modules():
        kind = _NUMBER.sub("", name)
        if is_made_anew(module) and (every_layer or kind in kinds) and "forward" not in vars(module):
            chosen.append(module)
        kinds.add(kind)
    return chosen


class _FrozenProduct(torch.autograd.Function):
    """x (..., in) -> (..., out), with a weight that is made for each product and not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, passing_weight(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient: torch.Tensor = gradients[0]
        return gradient @ passing_weight(ctx.layer, gradient.dtype), None


def _make_forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    dtype = getattr(layer, "compute_dtype", None)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _FrozenProduct.apply(x.to(dtype or x.dtype), layer)  # type: ignore[no-untyped-call]
        return (y if layer.bias is None else y + layer.bias.to(y.dtype)).to(x.dtype)

    return forward
