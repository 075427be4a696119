"""Attention by segments on a GPU: PyTorch's variable-length flash attention, which no wheel has to bring.

A shared prefix stands once among the queries, and before every segment among the keys: the kernel aligns the ends of
both, so that is causal attention behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from lora_chat.training.fast_path.attention.cpu import Heads

_LARGEST_HEAD = 256


@dataclass(frozen=True)
class VarlenRows:
    """Borders of a flat micro-batch, on its device."""

    query_edges: torch.Tensor
    """(segments + 1,), int32."""
    key_edges: torch.Tensor
    longest_query: int
    longest_key: int
    keys: torch.Tensor | None = None
    """(keys,): the flat token at every place of the keys; None: keys stand as queries do."""
    own: torch.Tensor | None = None
    """(tokens,): the place of every flat token among the keys, not counting copies."""
    copies: torch.Tensor | None = None
    """(segments - 1, prefix): the places of the prefix's copies."""


def covers(states: torch.Tensor) -> bool:
    """Whether the kernel takes states (..., size) of this type and size."""
    return states.dtype in (torch.bfloat16, torch.float16) and states.shape[-1] <= _LARGEST_HEAD


@lru_cache(maxsize=64)
def find_varlen(edges: tuple[int, ...], prefix: int, device: torch.device) -> VarlenRows:
    """Flat borders (segments + 1) and the tokens that all segments begin with -> what the kernel wants to know."""

    def here(values: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    queries = [end - start for start, end in pairwise(edges)]
    borders = here(edges, torch.int32)
    if not prefix:
        return VarlenRows(borders, borders, max(queries), max(queries))
    keys: list[int] = []
    own: list[int] = []
    copies: list[int] = []
    key_edges = [0]
    for number, (start, end) in enumerate(pairwise(edges)):
        if number:
            copies += range(len(keys), len(keys) + prefix)
            keys += range(prefix)
        own += range(len(keys), len(keys) + end - start)
        keys += range(start, end)
        key_edges.append(len(keys))
    longest = max(end - start for start, end in pairwise(key_edges))
    return VarlenRows(
        borders,
        here(key_edges, torch.int32),
        max(queries),
        longest,
        here(keys),
        here(own),
        here(copies).view(-1, prefix),
    )


def mix(states: torch.Tensor, heads: Heads, rows: VarlenRows) -> torch.Tensor:
    """Query, key and value states (tokens, query + 2 * key heads, size) -> (tokens, query heads, size)."""
    from torch.nn.attention.varlen import varlen_attn

    queries, pairs = torch.split(states, [heads.query, 2 * heads.key], dim=1)
    if rows.keys is not None:
        pairs = _WithCopies.apply(pairs, rows)  # type: ignore[no-untyped-call]
    keys, values = pairs.chunk(2, dim=1)
    back = -1 if heads.window is None else heads.window - 1
    borders = rows.query_edges, rows.key_edges, rows.longest_query, rows.longest_key
    mixed: torch.Tensor = varlen_attn(  # type: ignore[assignment]
        queries, keys, values, *borders, scale=heads.scale, window_size=(back, 0), enable_gqa=True
    )
    return mixed


def attend_varlen(states: torch.Tensor, heads: Heads, rows: VarlenRows) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`mix`, and what `varlen_gradient` needs: the kernel's own gradient, kept behind its result."""
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        mixed = mix(leaf, heads, rows)
    return mixed.detach(), [leaf, mixed]


def varlen_gradient(above: torch.Tensor, kept: Sequence[torch.Tensor]) -> torch.Tensor:
    """Gradient of the states, from that of the output (tokens, query heads, size)."""
    leaf, mixed = kept
    return torch.autograd.grad(mixed, leaf, above)[0]


class _WithCopies(torch.autograd.Function):
    """Keys and values (tokens, 2 * key heads, size) -> the same with the prefix in front of every segment.

    Indexing would add up the copies' gradients in bf16 and in any order; here it is one sum in fp32.
    """

    @staticmethod
    def forward(ctx: Any, pairs: torch.Tensor, rows: VarlenRows) -> torch.Tensor:
        assert rows.keys is not None
        ctx.rows = rows
        return pairs.index_select(0, rows.keys)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, gradient = ctx.rows, gradients[0]
        result = gradient.index_select(0, rows.own)
        copied = gradient.index_select(0, rows.copies.flatten()).view(*rows.copies.shape, *gradient.shape[1:])
        result[: rows.copies.shape[1]] += copied.sum(0, dtype=torch.float32).to(gradient.dtype)
        return result, None
