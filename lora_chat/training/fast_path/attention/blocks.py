"""Blocks of similarly long sequences: how a packed batch is laid out side by side for attention on a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_QUERY_TILE_SIZE = 256
"""Number of queries of a sequence that are computed together."""
_BLOCK_COST = 16384
"""Cost of one more block, in padded scores of one head: about twenty small operations."""


@dataclass(frozen=True)
class PaddedBlock:
    """Sequences of similar length, padded on the right to the longest."""

    length: int
    padded_tokens: "torch.Tensor"
    """Packed token of every slot, (sequences * length,); 0 for padding."""
    own_slots: "torch.Tensor"
    """Slots of the sequences' own tokens, without padding and copies of the prefix."""
    own_tokens: "torch.Tensor"
    """Packed tokens of `own_slots`."""
    first_prefix_copy: int
    """Number of the first sequence whose shared prefix is a copy."""


@lru_cache(maxsize=256)
def build_blocks(cu_seqlens: tuple[int, ...], prefix: int) -> tuple[PaddedBlock, ...]:
    """Build blocks that cover every token once, from the packed borders (sequences + 1).

    The first sequence begins with `prefix` tokens. The others leave them out, and still attend to them.
    """
    import torch

    # For each sequence: the packed tokens that it attends to, and the number of shared ones.
    sequences = []
    for i, (start, end) in enumerate(pairwise(cu_seqlens)):
        shared = list(range(prefix)) if i else []
        sequences.append((shared + list(range(start, end)), len(shared)))
    # Longest first, but the first sequence before others of its length, because it owns the prefix.
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i][0]), i))
    blocks = []
    for group in _group_by_length([len(sequences[i][0]) for i in order]):
        members = sorted(order[group])
        length = max(len(sequences[i][0]) for i in members)
        padded = [0] * (len(members) * length)
        slots: list[int] = []
        tokens: list[int] = []
        for row, i in enumerate(members):
            sequence, shared_count = sequences[i]
            padded[row * length : row * length + len(sequence)] = sequence
            slots += range(row * length + shared_count, row * length + len(sequence))
            tokens += sequence[shared_count:]
        blocks.append(
            PaddedBlock(
                length=length,
                padded_tokens=torch.tensor(padded),
                own_slots=torch.tensor(slots),
                own_tokens=torch.tensor(tokens),
                first_prefix_copy=1 if members[0] == 0 else 0,
            )
        )
    return tuple(blocks)


def _group_by_length(lengths: Sequence[int]) -> list[slice]:
    """Cut descending lengths into runs with the lowest total cost of padding and of the runs themselves."""
    # Dynamic programming: best[n] is the cost of the first n lengths, and the start of their last run.
    best = [(0, 0)]
    for n in range(1, len(lengths) + 1):
        best.append(min((best[i][0] + (n - i) * lengths[i] ** 2 + _BLOCK_COST, i) for i in range(n)))
    # Follow the starts from the end.
    runs: list[slice] = []
    end = len(lengths)
    while end:
        runs.append(slice(best[end][1], end))
        end = best[end][1]
    return runs


def split_into_tiles(length: int) -> tuple[tuple[int, int], ...]:
    """Split the queries of a sequence into tiles.

    A tile is multiplied with the keys up to its own end only, which leaves out up to half of the scores.
    """
    tiles = max(1, round(length / _QUERY_TILE_SIZE))
    boundaries = [round(i * length / tiles) for i in range(tiles + 1)]
    return tuple(pairwise(boundaries))


@lru_cache(maxsize=256)
def causal_mask(
    tile: tuple[int, int], heads_per_kv_head: int, dtype: "torch.dtype", window: int | None, device: "torch.device"
) -> "torch.Tensor":
    """Return the mask of a tile's queries: 0 for visible keys, -inf for later keys and keys outside the window.

    Its shape is (tile length * heads per key head, end of the tile), with the heads of a key head next to each other.
    """
    import torch

    start, end = tile
    distance = torch.arange(start, end, device=device)[:, None] - torch.arange(end, device=device)
    masked = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    mask = torch.zeros(end - start, end, dtype=dtype, device=device).masked_fill_(masked, float("-inf"))
    return mask.repeat_interleave(heads_per_kv_head, 0)
