"""LoRA layers that read the same states, as one product: query, key and value; gate and up.

[y1 y2 ...] = x [W1 W2 ...]^T + (x [A1 A2 ...]^T) B^T, with B the scaled B1, B2, ... on the diagonal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from lora_chat.models.quantization.dequantize import get_buffered_dense_weight
from lora_chat.models.quantization.weight_cache import concatenate_cached_weights
from lora_chat.training.fast_path.layers.matmul import balanced_matmul


@dataclass(frozen=True)
class SavedLora:
    """What a group computed with, kept for the gradient."""

    a: torch.Tensor
    """(ranks, in)"""
    b: torch.Tensor
    """(out, ranks)"""
    inner: torch.Tensor
    """(tokens, ranks)"""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.a, self.b, self.inner


class LoraGroup:
    """PEFT LoRA layers over the same input; `parameters` are what autograd must see."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = [layer.base_layer for layer in layers]
        self._cached_weight = concatenate_cached_weights(self._layers)
        self._scales = [float(layer.scaling["default"]) for layer in layers]
        self._a = [layer.lora_A["default"].weight for layer in layers]
        self._b = [layer.lora_B["default"].weight for layer in layers]
        rows = [0, *accumulate(b.shape[0] for b in self._b)]
        ranks = [0, *accumulate(b.shape[1] for b in self._b)]
        self._diagonal_slices = [(slice(*r), slice(*c)) for r, c in zip(pairwise(rows), pairwise(ranks), strict=True)]
        """Where each B stands on the diagonal."""
        biases = [layer.bias for layer in self._layers]
        self._bias = None if biases[0] is None else torch.cat(biases)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [*self._a, *self._b]

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> tuple[torch.Tensor, SavedLora]:
        """x (tokens, in) -> `residual` + the layers' outputs side by side (tokens, out).

        `residual` comes last: bf16 has no place for LoRA's small part beside the large states of a residual stream,
        unless that part is added to the layer's own output first, as PEFT does.
        """
        saved = self.inner(x)
        y = self._base_forward(x)
        if self._bias is not None:
            y += self._bias.to(y.dtype)
        y.addmm_(saved.inner, saved.b.T)
        return y if residual is None else y.add_(residual), saved

    def inner(self, x: torch.Tensor) -> SavedLora:
        """All that `backward` needs, without the outputs."""
        a, b = self._stack_lora_weights(x.dtype)
        return SavedLora(a, b, balanced_matmul(x, a.T))

    def backward(
        self, grad_out: torch.Tensor, x: torch.Tensor, saved: SavedLora
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """gradient (tokens, out) -> gradient of x, and those of `parameters`."""
        grad_low_rank = balanced_matmul(grad_out, saved.b)
        grad_a = torch.split((grad_low_rank.T @ x).float(), [a.shape[0] for a in self._a])
        grad_b = (grad_out.T @ saved.inner).float()
        blocks = [grad_b[place] * scale for place, scale in zip(self._diagonal_slices, self._scales, strict=True)]
        gradients = [g.to(p.dtype) for g, p in zip([*grad_a, *blocks], self.parameters, strict=True)]
        return self._base_backward(grad_out).addmm_(grad_low_rank, saved.a), gradients

    def _base_forward(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen layers' products; weights that are not held are made one at a time."""
        if self._cached_weight is not None or len(self._layers) == 1:
            return balanced_matmul(x, self._weight(0, x.dtype).T)
        y = x.new_empty(x.shape[0], self._diagonal_slices[-1][0].stop)
        for number, (rows, _) in enumerate(self._diagonal_slices):
            torch.mm(x, self._weight(number, x.dtype).T, out=y[:, rows])
        return y

    def _base_backward(self, grad_out: torch.Tensor) -> torch.Tensor:
        if self._cached_weight is not None or len(self._layers) == 1:
            return balanced_matmul(grad_out, self._weight(0, grad_out.dtype))
        first, *others = enumerate(self._diagonal_slices)
        grad_x = grad_out[:, first[1][0]] @ self._weight(0, grad_out.dtype)
        for number, (rows, _) in others:
            grad_x.addmm_(grad_out[:, rows], self._weight(number, grad_out.dtype))
        return grad_x

    def _weight(self, number: int, dtype: torch.dtype) -> torch.Tensor:
        """All weights below each other if they are held so, else one of them."""
        if self._cached_weight is not None:
            return self._cached_weight.to(dtype)
        return get_buffered_dense_weight(self._layers[number], dtype)  # type: ignore[no-any-return]

    def _stack_lora_weights(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        a = torch.cat([a.detach() for a in self._a]).to(dtype)
        b = a.new_zeros(self._diagonal_slices[-1][0].stop, a.shape[0])
        for place, part, scale in zip(self._diagonal_slices, self._b, self._scales, strict=True):
            b[place] = part.detach() * scale
        return a, b
