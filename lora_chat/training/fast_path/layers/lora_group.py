"""LoRA layers over the same input as one product: query, key and value; gate and up.

[y1 y2 ...] = x [W1 W2 ...]^T + (x [A1 A2 ...]^T) B^T, where B has the scaled B1, B2, ... on its diagonal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from lora_chat.models.quantization.dequantize import get_buffered_dense_weight
from lora_chat.models.quantization.weight_cache import are_shards, concatenate_cached_weights
from lora_chat.training.fast_path.layers.matmul import balanced_matmul

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


@dataclass(frozen=True)
class SavedLora:
    """The tensors of a group's forward that its gradient needs."""

    a: torch.Tensor
    """Stacked A, (ranks, in)."""
    b: torch.Tensor
    """Scaled B on the diagonal, (out, ranks)."""
    low_rank: torch.Tensor
    """Product of x and A, (tokens, ranks)."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors in the order of the constructor."""
        return self.a, self.b, self.low_rank


class LoraGroup:
    """PEFT LoRA layers over the same input. Autograd must see their `parameters`."""

    def __init__(self, layers: "Sequence[LoraLayer]") -> None:
        self._layers = [layer.base_layer for layer in layers]
        self._cached_weight = concatenate_cached_weights(self._layers)
        """Weights of all layers below each other, (out, in), if they are cached."""
        self._joins_weights = self._cached_weight is None and are_shards(self._layers)
        """Whether the weights are put below each other for each product, because FSDP collects and frees them."""
        self._scales = [float(layer.scaling["default"]) for layer in layers]
        self._a = [layer.lora_A["default"].weight for layer in layers]
        self._b = [layer.lora_B["default"].weight for layer in layers]
        rows = [0, *accumulate(b.shape[0] for b in self._b)]
        ranks = [0, *accumulate(b.shape[1] for b in self._b)]
        self._diagonal_slices = [(slice(*r), slice(*c)) for r, c in zip(pairwise(rows), pairwise(ranks), strict=True)]
        """Rows and columns of each B in the block-diagonal B."""
        biases = [layer.bias for layer in self._layers]
        self._bias = None if biases[0] is None else torch.cat(biases)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Return all A, then all B."""
        return [*self._a, *self._b]

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> tuple[torch.Tensor, SavedLora]:
        """Return `residual` + the layers' outputs side by side (tokens, out), for x (tokens, in).

        `residual` is added last, as in PEFT. In bf16 LoRA's small part would be lost beside the large states of a
        residual stream if it were not added to the layer's own output first.
        """
        saved = self.compute_saved(x)
        y = self._base_forward(x)
        if self._bias is not None:
            y += self._bias.to(y.dtype)
        y.addmm_(saved.low_rank, saved.b.T)
        return y if residual is None else y.add_(residual), saved

    def compute_saved(self, x: torch.Tensor) -> SavedLora:
        """Return the tensors that `backward` needs, without computing the outputs."""
        a, b = self._stack_lora_weights(x.dtype)
        return SavedLora(a, b, balanced_matmul(x, a.T))

    def backward(
        self, grad_out: torch.Tensor, x: torch.Tensor, saved: SavedLora
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the gradient of x and the gradients of `parameters`, from grad_out (tokens, out)."""
        grad_low_rank = balanced_matmul(grad_out, saved.b)
        # Each layer's A has its own rows of the stacked gradient.
        grad_a = torch.split((grad_low_rank.T @ x).float(), [a.shape[0] for a in self._a])
        # Each layer's B has its own block on the diagonal; the other blocks are not parameters.
        grad_b = (grad_out.T @ saved.low_rank).float()
        blocks = [grad_b[block] * scale for block, scale in zip(self._diagonal_slices, self._scales, strict=True)]
        gradients = [g.to(p.dtype) for g, p in zip([*grad_a, *blocks], self.parameters, strict=True)]
        return self._base_backward(grad_out).addmm_(grad_low_rank, saved.a), gradients

    @property
    def _is_one_product(self) -> bool:
        """Return whether the frozen layers are multiplied together."""
        return self._cached_weight is not None or self._joins_weights or len(self._layers) == 1

    def _base_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the products of the frozen layers; weights that are not cached are dequantized one at a time."""
        if self._is_one_product:
            return balanced_matmul(x, self._weight(0, x.dtype).T)
        y = x.new_empty(x.shape[0], self._diagonal_slices[-1][0].stop)
        for number, (rows, _) in enumerate(self._diagonal_slices):
            torch.mm(x, self._weight(number, x.dtype).T, out=y[:, rows])
        return y

    def _base_backward(self, grad_out: torch.Tensor) -> torch.Tensor:
        """Return the part of x's gradient that comes from the frozen layers."""
        if self._is_one_product:
            return balanced_matmul(grad_out, self._weight(0, grad_out.dtype))
        first, *others = enumerate(self._diagonal_slices)
        grad_x = grad_out[:, first[1][0]] @ self._weight(0, grad_out.dtype)
        for number, (rows, _) in others:
            grad_x.addmm_(grad_out[:, rows], self._weight(number, grad_out.dtype))
        return grad_x

    def _weight(self, number: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the concatenated weights if they are multiplied together, and the weight of one layer otherwise."""
        if self._cached_weight is not None:
            return self._cached_weight.to(dtype)
        if self._joins_weights:
            return torch.cat([layer.weight.detach() for layer in self._layers]).to(dtype)
        return get_buffered_dense_weight(self._layers[number], dtype)

    def _stack_lora_weights(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stacked A (ranks, in) and the block-diagonal, scaled B (out, ranks)."""
        if len(self._a) == 1:  # fewer kernels for the same values
            return self._a[0].detach().to(dtype), (self._b[0].detach() * self._scales[0]).to(dtype)
        a = torch.cat([a.detach() for a in self._a]).to(dtype)
        b = a.new_zeros(self._diagonal_slices[-1][0].stop, a.shape[0])
        for block, part, scale in zip(self._diagonal_slices, self._b, self._scales, strict=True):
            torch.mul(part.detach(), scale, out=b[block])
        return a, b
