"""LoRA layers that read the same states, as one product: query, key and value; gate and up.

[y1 y2 ...] = x [W1 W2 ...]^T + (x [A1 A2 ...]^T) B^T, with B the scaled B1, B2, ... on the diagonal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from lora_chat.models.quantization.dequantize import passing_weight
from lora_chat.models.quantization.weight_cache import hold_together
from lora_chat.training.fast_path.layers.matmul import product


@dataclass(frozen=True)
class Trained:
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
        self._held = hold_together(self._layers)
        self._scales = [float(layer.scaling["default"]) for layer in layers]
        self._a = [layer.lora_A["default"].weight for layer in layers]
        self._b = [layer.lora_B["default"].weight for layer in layers]
        rows = [0, *accumulate(b.shape[0] for b in self._b)]
        ranks = [0, *accumulate(b.shape[1] for b in self._b)]
        self._places = [(slice(*r), slice(*c)) for r, c in zip(pairwise(rows), pairwise(ranks), strict=True)]
        """Where each B stands on the diagonal."""
        biases = [layer.bias for layer in self._layers]
        self._bias = None if biases[0] is None else torch.cat(biases)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [*self._a, *self._b]

    def forward(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> tuple[torch.Tensor, Trained]:
        """x (tokens, in) -> `plus` + the layers' outputs side by side (tokens, out).

        `plus` comes last: bf16 has no place for LoRA's small part beside the large states of a residual stream,
        unless that part is added to the layer's own output first, as PEFT does.
        """
        trained = self.inner(x)
        y = self._base(x)
        if self._bias is not None:
            y += self._bias.to(y.dtype)
        y.addmm_(trained.inner, trained.b.T)
        return y if plus is None else y.add_(plus), trained

    def inner(self, x: torch.Tensor) -> Trained:
        """All that `backward` needs, without the outputs."""
        a, b = self._lay_out(x.dtype)
        return Trained(a, b, product(x, a.T))

    def backward(
        self, gradient: torch.Tensor, x: torch.Tensor, trained: Trained
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """gradient (tokens, out) -> gradient of x, and those of `parameters`."""
        inner = product(gradient, trained.b)
        to_a = torch.split((inner.T @ x).float(), [a.shape[0] for a in self._a])
        to_b = (gradient.T @ trained.inner).float()
        blocks = [to_b[place] * scale for place, scale in zip(self._places, self._scales, strict=True)]
        gradients = [g.to(p.dtype) for g, p in zip([*to_a, *blocks], self.parameters, strict=True)]
        return self._base_gradient(gradient).addmm_(inner, trained.a), gradients

    def _base(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen layers' products; weights that are not held are made one at a time."""
        if self._held is not None or len(self._layers) == 1:
            return product(x, self._weight(0, x.dtype).T)
        y = x.new_empty(x.shape[0], self._places[-1][0].stop)
        for number, (rows, _) in enumerate(self._places):
            torch.mm(x, self._weight(number, x.dtype).T, out=y[:, rows])
        return y

    def _base_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        if self._held is not None or len(self._layers) == 1:
            return product(gradient, self._weight(0, gradient.dtype))
        first, *others = enumerate(self._places)
        x = gradient[:, first[1][0]] @ self._weight(0, gradient.dtype)
        for number, (rows, _) in others:
            x.addmm_(gradient[:, rows], self._weight(number, gradient.dtype))
        return x

    def _weight(self, number: int, dtype: torch.dtype) -> torch.Tensor:
        """All weights below each other if they are held so, else one of them."""
        if self._held is not None:
            return self._held.to(dtype)
        return passing_weight(self._layers[number], dtype)  # type: ignore[no-any-return]

    def _lay_out(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        a = torch.cat([a.detach() for a in self._a]).to(dtype)
        b = a.new_zeros(self._places[-1][0].stop, a.shape[0])
        for place, part, scale in zip(self._places, self._b, self._scales, strict=True):
            b[place] = part.detach() * scale
        return a, b
