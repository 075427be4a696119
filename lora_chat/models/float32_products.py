"""Linear layers of a 16-bit model that multiply in fp32, for CPUs without 16-bit products."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WEIGHTS_PER_CHUNK = 2**26
"""Number of weights that are cast to fp32 together; they take 256 MiB."""


@contextmanager
def float32_products(model: "torch.nn.Module") -> Iterator[int]:
    """Let all linear layers multiply in fp32 until the block ends, and yield their number.

    The model stays in 16 bits, because in fp32 it takes twice the memory. PyTorch's 16-bit products are much slower on
    a CPU that has no instructions for them. Results are rounded to 16 bits after each layer, as on a GPU.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    for layer in layers:
        layer.forward = _make_forward(layer)  # type: ignore[method-assign]
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward  # restores the method of the class


def _make_forward(layer: "torch.nn.Module") -> "Callable[[torch.Tensor], torch.Tensor]":
    """Return a forward of a Linear or Conv1D that returns the dtype of its input."""
    import torch

    def forward(x: "torch.Tensor") -> "torch.Tensor":
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        bias: torch.Tensor | None = layer.bias  # type: ignore[assignment]
        # (out, in); Conv1D stores the transpose.
        weight = weight if isinstance(layer, torch.nn.Linear) else weight.T
        rows = max(1, _WEIGHTS_PER_CHUNK // weight.shape[1])
        wide = x.float()
        parts = [torch.nn.functional.linear(wide, chunk.float()) for chunk in torch.split(weight, rows)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return (y if bias is None else y + bias.float()).to(x.dtype)

    return forward
