"""Texts -> hashes of their runs of three words, many texts at once."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 3
"""Words in a shingle (Broder 1997 calls runs of words so); five characters where words have no spaces."""
SHINGLE_CHARACTERS = 5
_PRIME = 0x9E3779B97F4A7C15
_INVERSE = pow(_PRIME, -1, 2**64)


def hash_shingles(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Hashes of all texts' shingles in one row, shape [N], and where each text's begin, shape [texts].

    Case and punctuation make no difference. A text shorter than a shingle gives one hash of all its words.
    Every text gives at least one.
    """
    codes = np.frombuffer("\0".join([*texts, ""]).lower().encode("utf-32-le", "replace"), dtype="<u4")
    ends_text = np.flatnonzero(codes == 0)
    if len(ends_text) != len(texts):  # a NUL in a text
        return hash_shingles([text.replace("\0", " ") for text in texts])
    kinds = _character_classes().take(codes, mode="clip")
    starts, ends = _find_words(kinds)
    after = np.searchsorted(starts, ends_text)
    counts = np.diff(after, prepend=0)
    last = np.repeat(after - 1, counts)
    final = np.arange(len(starts)) + np.where(kinds[starts] == 2, SHINGLE_CHARACTERS - 1, SHINGLE_WORDS - 1)
    kept = final <= last
    kept[(after - counts)[counts > 0]] = True  # the first even if it is cut short by the text's end
    hashes = _hash_runs(codes, starts, ends, np.minimum(final, last))[kept]
    begins = np.append(0, np.cumsum(kept))[after - counts]
    empty = np.flatnonzero(counts == 0)
    return np.insert(hashes, begins[empty], 0), begins + np.searchsorted(empty, np.arange(len(texts)))


def _find_words(kinds: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where words begin and end: runs of kind 1, single characters of kind 2."""
    before = np.concatenate([np.zeros(1, np.uint8), kinds[:-1]])
    after = np.concatenate([kinds[1:], np.zeros(1, np.uint8)])
    starts = np.flatnonzero((kinds == 2) | ((kinds == 1) & (before != 1)))
    ends = np.flatnonzero((kinds == 2) | ((kinds == 1) & (after != 1))) + 1
    return starts, ends


def _hash_runs(
    codes: NDArray[np.uint32], starts: NDArray[np.int64], ends: NDArray[np.int64], final: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """Polynomial hash of each word, then of each word with those up to `final`; modulo 2**64, wherever it stands."""
    powers, inverses = _powers(1 << max(16, len(codes).bit_length()))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((codes + np.uint64(1)) * powers[: len(codes)])])
    words = (sums[ends] - sums[starts]) * inverses[starts]
    words = (words ^ (words >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    places = np.arange(len(words))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers[: len(words)])])
    runs = (sums[final + 1] - sums[places]) * inverses[places]
    runs = (runs ^ (runs >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
    hashes: NDArray[np.uint32] = (runs >> np.uint64(32)).astype(np.uint32)
    return hashes


@cache
def _character_classes() -> NDArray[np.uint8]:
    """Per code point: 0 separates words, 1 belongs to one, 2 is one; what lies beyond U+FFFF counts as U+FFFF."""
    kinds = np.fromiter((chr(c).isalnum() for c in range(0x10000)), np.uint8, 0x10000)
    for first, last in ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF)):
        kinds[first : last + 1] *= 2  # Thai and Lao, Burmese, Khmer, kana, Chinese characters
    kinds[0xFFFF] = 2
    return kinds


@cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The prime's powers and their inverses modulo 2**64."""
    powers, inverses = np.full(count, _PRIME, np.uint64), np.full(count, _INVERSE, np.uint64)
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)
