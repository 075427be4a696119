"""Where each dialogue of a flat micro-batch stands, and how to lay them side by side for attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_QUERY_TILE_SIZE = 256
"""Queries of a segment that go together."""
_BLOCK_COST = 16384
"""What one more block costs, in padded scores of one head: some twenty small operations."""


@dataclass(frozen=True)
class PaddedBlock:
    """Segments of similar length, padded on the right to the longest."""

    length: int
    padded_tokens: "torch.Tensor"
    """(segments * length,): the flat token at every padded place; 0 where there is none."""
    own_slots: "torch.Tensor"
    """Padded places of the segments' own tokens, ..."""
    own_tokens: "torch.Tensor"
    """... and which flat tokens they are."""
    first_prefix_copy: int
    """From this segment on, a shared prefix in front is a copy."""


@lru_cache(maxsize=256)
def build_blocks(cu_seqlens: tuple[int, ...], prefix: int) -> tuple[PaddedBlock, ...]:
    """Flat borders (segments + 1) -> blocks that cover every token once.

    The first segment begins with `prefix` tokens which all others, that leave them out, also see.
    """
    import torch

    sequences = []
    for i, (start, end) in enumerate(pairwise(cu_seqlens)):
        shared = list(range(prefix)) if i else []
        sequences.append((shared + list(range(start, end)), len(shared)))
    # Longest first, but the first segment before others of its length: it owns the prefix.
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i][0]), i))
    blocks = []
    for group in _group_by_length([len(sequences[i][0]) for i in order]):
        members = sorted(order[group])
        length = max(len(sequences[i][0]) for i in members)
        padded = [0] * (len(members) * length)
        places: list[int] = []
        tokens: list[int] = []
        for row, i in enumerate(members):
            sequence, shared_count = sequences[i]
            padded[row * length : row * length + len(sequence)] = sequence
            places += range(row * length + shared_count, row * length + len(sequence))
            tokens += sequence[shared_count:]
        blocks.append(
            PaddedBlock(
                length=length,
                padded_tokens=torch.tensor(padded),
                own_slots=torch.tensor(places),
                own_tokens=torch.tensor(tokens),
                first_prefix_copy=1 if members[0] == 0 else 0,
            )
        )
    return tuple(blocks)


def _group_by_length(lengths: Sequence[int]) -> list[slice]:
    """Cut falling lengths into runs so that padding and the number of runs together cost least."""
    best = [(0, 0)]  # for the first n: cost, and where the last run begins
    for n in range(1, len(lengths) + 1):
        best.append(min((best[i][0] + (n - i) * lengths[i] ** 2 + _BLOCK_COST, i) for i in range(n)))
    runs: list[slice] = []
    end = len(lengths)
    while end:
        runs.append(slice(best[end][1], end))
        end = best[end][1]
    return runs


def split_into_tiles(length: int) -> tuple[tuple[int, int], ...]:
    """Runs of queries: each is multiplied with the keys up to its own end alone, so half of the square is left out."""
    tiles = max(1, round(length / _QUERY_TILE_SIZE))
    boundaries = [round(i * length / tiles) for i in range(tiles + 1)]
    return tuple(pairwise(boundaries))


@lru_cache(maxsize=256)
def causal_mask(
    tile: tuple[int, int], heads_per_kv_head: int, dtype: "torch.dtype", window: int | None, device: "torch.device"
) -> "torch.Tensor":
    """For the queries of a tile: 0 where one may look, -inf in the future and `window` tokens back or more.

    (tile length * copies, end of the tile): the heads that share a key head lie next to each other.
    """
    import torch

    start, end = tile
    distance = torch.arange(start, end, device=device)[:, None] - torch.arange(end, device=device)
    masked = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    mask = torch.zeros(end - start, end, dtype=dtype, device=device).masked_fill_(masked, float("-inf"))
    return mask.repeat_interleave(heads_per_kv_head, 0)
