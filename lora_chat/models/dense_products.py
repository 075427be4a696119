"""Quantised layers on a CPU that multiply with values made in one place, as the fast path does."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lora_chat.models.dense_values import frozen_weight, is_made_anew, shared_room

_NUMBER = re.compile(r"\d+")


@contextmanager
def dense_products(model: torch.nn.Module) -> Iterator[int]:
    """Until the block ends, in training mode or not; yields how many layers multiply so.

    bitsandbytes' own products leave holes in memory as large as all layers' values together, and in 8 bits they take
    several times as long. The first layer of every kind keeps its own: a proof that compares with them sees whether
    the values are theirs.
    """
    layers: list[Any] = []
    kinds = set()
    for name, module in model.named_modules():
        kind = _NUMBER.sub("", name)
        if is_made_anew(module) and kind in kinds:
            layers.append(module)
        kinds.add(kind)
    with shared_room(model):
        for layer in layers:
            layer.forward = _make_forward(layer)
        try:
            yield len(layers)
        finally:
            for layer in layers:
                del layer.forward  # the class's own comes back


class _FrozenProduct(torch.autograd.Function):
    """x (..., in) -> (..., out), with a weight that is made for each product and not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, frozen_weight(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient: torch.Tensor = gradients[0]
        return gradient @ frozen_weight(ctx.layer, gradient.dtype), None


def _make_forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    dtype = getattr(layer, "compute_dtype", None)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _FrozenProduct.apply(x.to(dtype or x.dtype), layer)  # type: ignore[no-untyped-call]
        return (y if layer.bias is None else y + layer.bias.to(y.dtype)).to(x.dtype)

    return forward
