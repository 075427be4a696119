"""Texts to hashes of their sequences of three words, called shingles (Broder 1997), for many texts together."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 3
"""Number of words in a shingle."""
SHINGLE_CHARACTERS = 5
"""Number of characters in a shingle, for scripts without spaces between words."""
_PRIME = 0x9E3779B97F4A7C15
_INVERSE = pow(_PRIME, -1, 2**64)


def hash_shingles(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the hashes of the shingles of all texts, shape [N], and the index of each text's first, shape [texts].

    Case and punctuation are ignored. A text shorter than a shingle has one hash of all its words. Every text has at
    least one hash.
    """
    # All texts as one array of code points, with a zero after each text.
    codes = np.frombuffer("\0".join([*texts, ""]).lower().encode("utf-32-le", "replace"), dtype="<u4")
    ends_text = np.flatnonzero(codes == 0)
    if len(ends_text) != len(texts):  # a text contains a zero
        return hash_shingles([text.replace("\0", " ") for text in texts])
    # The first and the last character of each word, and the number of words in each text.
    kinds = _character_classes().take(codes, mode="clip")
    starts, ends = _find_words(kinds)
    after = np.searchsorted(starts, ends_text)
    counts = np.diff(after, prepend=0)
    # Each word starts a shingle, which ends with `final` unless that word belongs to the next text.
    last = np.repeat(after - 1, counts)
    final = np.arange(len(starts)) + np.where(kinds[starts] == 2, SHINGLE_CHARACTERS - 1, SHINGLE_WORDS - 1)
    is_shingle = final <= last
    is_shingle[(after - counts)[counts > 0]] = True  # the first one even if the text is shorter
    hashes = _hash_runs(codes, starts, ends, np.minimum(final, last))[is_shingle]
    # A text without words has one hash, 0.
    begins = np.append(0, np.cumsum(is_shingle))[after - counts]
    empty = np.flatnonzero(counts == 0)
    return np.insert(hashes, begins[empty], 0), begins + np.searchsorted(empty, np.arange(len(texts)))


def _find_words(kinds: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the index of the first character of each word, and the index after its last character.

    A word is a sequence of characters of kind 1, or one character of kind 2.
    """
    before = np.concatenate([np.zeros(1, np.uint8), kinds[:-1]])
    after = np.concatenate([kinds[1:], np.zeros(1, np.uint8)])
    starts = np.flatnonzero((kinds == 2) | ((kinds == 1) & (before != 1)))
    ends = np.flatnonzero((kinds == 2) | ((kinds == 1) & (after != 1))) + 1
    return starts, ends


def _hash_runs(
    codes: NDArray[np.uint32], starts: NDArray[np.int64], ends: NDArray[np.int64], final: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """Return a hash of each sequence of words, from each word to the word number `final`; equal for equal words.

    Both hashes, of the characters of a word and of the words of a sequence, are polynomials modulo 2**64.
    """
    powers, inverses = _powers(1 << max(16, len(codes).bit_length()))
    # The sum over a word is a difference of running sums; the inverse power removes the offset of the word.
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((codes + np.uint64(1)) * powers[: len(codes)])])
    word_hashes = (sums[ends] - sums[starts]) * inverses[starts]
    word_hashes = (word_hashes ^ (word_hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    # The same over the words of each sequence.
    positions = np.arange(len(word_hashes))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(word_hashes * powers[: len(word_hashes)])])
    runs = (sums[final + 1] - sums[positions]) * inverses[positions]
    runs = (runs ^ (runs >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
    hashes: NDArray[np.uint32] = (runs >> np.uint64(32)).astype(np.uint32)
    return hashes


@cache
def _character_classes() -> NDArray[np.uint8]:
    """Return the class of each code point up to U+FFFF, which counts for all code points after it.

    0 separates words, 1 is a part of a word, 2 is a word of one character.
    """
    kinds = np.fromiter((chr(c).isalnum() for c in range(0x10000)), np.uint8, 0x10000)
    for first, last in ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF)):
        kinds[first : last + 1] *= 2  # Thai and Lao, Burmese, Khmer, kana, Chinese characters
    kinds[0xFFFF] = 2
    return kinds


@cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the powers of the prime and their inverses, modulo 2**64."""
    powers, inverses = np.full(count, _PRIME, np.uint64), np.full(count, _INVERSE, np.uint64)
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)
