"""Random bits as a function of counters, equal on every device and in every layout of a batch.

PyTorch's generators return numbers in the order of the calls, so a token's numbers depend on the batch around it. Here
each number is a hash of its own key: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, with the constants of Vigna's
public-domain splitmix64.c) for keys, and lowbias32 (Wellons, hash-prospector, public domain) for the bits of a matrix.
Products wrap around at 64 and 32 bits.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_TILE_SIZES = {"cpu": 2**16}
"""Number of 32-bit hashes that are computed together: few enough for the cache of a CPU."""
_GPU_TILE_SIZE = 2**22


def signed64(value: int) -> int:
    """Return the signed 64-bit integer with the lowest 64 bits of a value."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def mix_integer(value: int) -> int:
    """Return the hash of an integer, as `mix` does for a tensor."""
    value %= 2**64
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        value = (value ^ (value >> shift)) * multiplier % 2**64
    return signed64(value)


def mix(values: torch.Tensor) -> torch.Tensor:
    """Return the hash of each int64: SplitMix64's output function."""
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        # The shift of a negative int64 fills with ones, which the mask removes.
        values = values ^ ((values >> shift) & (2 ** (64 - shift) - 1))
        if multiplier != 1:
            values = values * signed64(multiplier)
    return values


def nth_output(keys: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return for each key, as the seed of SplitMix64, its output with a number from 0."""
    return mix(keys + (numbers + 1) * signed64(_GAMMA))


def iterate_random_bits(keys: torch.Tensor, stream: int, width: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield uniform int16 numbers (rows, width) for keys (all rows,), a tile of rows at a time, with the tile's slice.

    The numbers depend on the key of their row, their column and the stream only. The next tile overwrites a tile.
    """
    # Each 32-bit hash gives two numbers of 16 bits.
    columns = _column_words(stream, (width + 1) // 2, keys.device)
    words = (mix(keys + mix_integer(stream)) >> 32).to(torch.int32)[:, None]
    tile_rows = max(1, _TILE_SIZES.get(keys.device.type, _GPU_TILE_SIZE) // max(1, len(columns)))
    buffers = torch.empty(2, min(tile_rows, len(words)), len(columns), dtype=torch.int32, device=keys.device)
    for begin in range(0, len(words), tile_rows):
        rows = slice(begin, min(begin + tile_rows, len(words)))
        hashes, shifted = buffers[:, : rows.stop - begin]
        torch.bitwise_xor(words[rows], columns, out=hashes)
        _mix32(hashes, shifted)
        yield rows, hashes.view(torch.int16)[:, :width]


def _mix32(values: torch.Tensor, shifted: torch.Tensor) -> None:
    """Replace each int32 by its hash lowbias32; `shifted` is memory of the same size."""
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, None)):
        torch.bitwise_right_shift(values, shift, out=shifted)
        values ^= shifted.bitwise_and_(2 ** (32 - shift) - 1)
        if multiplier is not None:
            values *= multiplier


@lru_cache(maxsize=4096)
def _column_words(stream: int, count: int, device: torch.device) -> torch.Tensor:
    """Return an int32 for each column of a stream."""
    seed = torch.full((count,), mix_integer(~stream), dtype=torch.int64, device=device)
    return (nth_output(seed, torch.arange(count, device=device)) >> 32).to(torch.int32)
