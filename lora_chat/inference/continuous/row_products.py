"""Products of several rows with one weight that give each row the bits of its own product.

Libraries for products of matrices choose another kernel for one row than for several, and then add in another order. A
reply would depend on the requests beside it. The ways below are tried on numbers whose exact sum is zero, so that any
other order of additions gives another result, and the fastest way that gives the same bits is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Multiply = Callable[["torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]
"""Function of rows (rows, 1, in) and a bias (out,) or None that returns (rows, 1, out)."""

_SPREAD_BLOCKS = (512, 256)
"""Numbers of inputs after which oneDNN starts a new sum for one row; for more rows it does so after twice as many."""
MAX_ROWS = 64
"""Largest number of rows of a step."""
_TRIED_ROWS = (*range(2, 18), 24, 31, 32, 33, 48, 63, MAX_ROWS)
_MAX_TRIED_WEIGHTS = 2**25
"""Largest number of weights of a trial; a larger layer is tried with fewer outputs."""
MAX_SPREAD_BYTES = 2**30
"""Memory for all weights that are stored a second time with zeros in between, in bytes."""


@dataclass(frozen=True)
class RowProduct:
    """A way to multiply several rows with a weight."""

    name: str
    prepare: Callable[["torch.Tensor"], Multiply]
    """Function that takes a weight (out, in) and returns the product with it."""
    memory_factor: float = 0.0
    """Additional memory, in multiples of the weight."""


def _together(weight: "torch.Tensor") -> Multiply:
    """Multiply all rows with one call."""
    import torch

    return lambda rows, bias: torch.nn.functional.linear(rows, weight, bias)


def _spread(weight: "torch.Tensor", block: int) -> Multiply:
    """Multiply all rows with one call, with zeros between blocks of inputs, so that the sums start where one row's do.

    oneDNN sums blocks of 512 inputs for one row, and blocks of 1024 for several rows. A block of 512 inputs and 512
    zeros has the sum of the 512 inputs.
    """
    import torch

    num_blocks = -(-weight.shape[1] // block)

    def insert_zeros(values: torch.Tensor) -> torch.Tensor:
        size = values.shape[-1]
        wide = values.new_zeros(*values.shape[:-1], num_blocks, 2 * block)
        full = size // block
        wide[..., :full, :block] = values[..., : full * block].reshape(*values.shape[:-1], full, block)
        if full < num_blocks:
            wide[..., full, : size - full * block] = values[..., full * block :]
        return wide.flatten(-2)[..., : (2 * num_blocks - 1) * block]

    wide_weight = insert_zeros(weight).contiguous()
    return lambda rows, bias: torch.nn.functional.linear(insert_zeros(rows), wide_weight, bias)


def _batched(weight: "torch.Tensor") -> Multiply:
    """Multiply in a batch of products of one row each, without a copy of the weight."""
    import torch

    transposed = weight.t()

    def multiply(rows: "torch.Tensor", bias: "torch.Tensor | None") -> "torch.Tensor":
        product = torch.bmm(rows, transposed.expand(len(rows), *transposed.shape))
        return product if bias is None else product + bias

    return multiply


def _one_by_one(weight: "torch.Tensor") -> Multiply:
    """Multiply each row separately."""
    import torch

    def multiply(rows: "torch.Tensor", bias: "torch.Tensor | None") -> "torch.Tensor":
        return torch.cat([torch.nn.functional.linear(row, weight, bias) for row in torch.split(rows, 1)])

    return multiply


TOGETHER = RowProduct("together", _together)
ONE_BY_ONE = RowProduct("one_by_one", _one_by_one)
_SPREAD = tuple(RowProduct(f"spread_{block}", partial(_spread, block=block), 2.0) for block in _SPREAD_BLOCKS)
_BATCHED = RowProduct("batched", _batched)


def choose_row_product(
    in_features: int, out_features: int, dtype: "torch.dtype", *, has_bias: bool, may_copy: bool = True
) -> RowProduct:
    """Return the fastest way for a layer on this CPU that gives each row the bits of its own product."""
    import torch

    threads = torch.get_num_threads()
    out_features = max(1, min(out_features, _MAX_TRIED_WEIGHTS // in_features))
    product: RowProduct = _choose(in_features, out_features, dtype, has_bias, may_copy, threads)
    return product


@lru_cache(maxsize=1024)
def _choose(
    in_features: int, out_features: int, dtype: "torch.dtype", has_bias: bool, may_copy: bool, _threads: int
) -> RowProduct:
    """Try the ways in order of their price. The result depends on the number of threads, too."""
    import torch

    generator = torch.Generator().manual_seed(in_features)
    rows, weight = _make_zero_sums(max(_TRIED_ROWS), in_features, out_features, dtype, generator)
    bias = torch.randn(out_features, generator=generator).to(dtype) if has_bias else None
    # Batches of single products are fast in fp32 and very slow in 16 bits.
    wide = dtype in (torch.float32, torch.float64)
    ways = [TOGETHER, *((_BATCHED,) if wide or in_features * out_features < 2**14 else ())]
    if may_copy and not wide:
        ways += [way for way, block in zip(_SPREAD, _SPREAD_BLOCKS, strict=True) if in_features > block]
    with torch.inference_mode():
        expected = _one_by_one(weight)(rows, bias)
        for way in ways:
            multiply = way.prepare(weight)
            if all(torch.equal(multiply(rows[:count], bias), expected[:count]) for count in _TRIED_ROWS):
                return way  # type: ignore[no-any-return]
    return ONE_BY_ONE


def _make_zero_sums(
    count: int, in_features: int, out_features: int, dtype: "torch.dtype", generator: "torch.Generator"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return rows (count, 1, in) and a weight (out, in) whose products are zero except for rounding.

    The inputs come in pairs with the same number and opposite weights, at random positions.
    """
    import torch

    half = in_features // 2
    order = torch.randperm(2 * half, generator=generator)
    numbers = torch.randn(count, half, generator=generator)
    weights = torch.randn(out_features, half, generator=generator)
    rows, weight = torch.zeros(count, in_features), torch.zeros(out_features, in_features)
    rows[:, order] = torch.cat([numbers, numbers], dim=1)
    weight[:, order] = torch.cat([weights, -weights], dim=1)
    return rows[:, None].to(dtype), weight.to(dtype)
