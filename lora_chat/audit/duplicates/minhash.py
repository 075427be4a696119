"""MinHash signatures (Broder 1997). The share of equal entries estimates the Jaccard similarity of two texts."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lora_chat.audit.duplicates.shingles import hash_shingles

_NEIGHBOURS_COMPARED = 4


CandidatePairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Row numbers of the earlier and of the later text of each pair, shapes [pairs]."""


def find_candidate_pairs(signatures: NDArray[np.uint16], borders: Sequence[int]) -> Iterator[CandidatePairs]:
    """Yield the pairs of rows that agree in a band of four entries, band by band.

    Two rows of similarity s agree in one of 16 bands with probability 1 - (1 - s**4)**16. The rows of each split are
    consecutive, and `borders` has the first row of every split but the first. If many rows agree, each is compared only
    with the first ones, with its neighbours and with the last rows of earlier splits, because the work must be linear.
    """
    bands = np.ascontiguousarray(signatures).view(np.uint64)
    for keys in bands.T:
        yield from _find_band_pairs(keys, borders)


def _find_band_pairs(keys: NDArray[np.uint64], borders: Sequence[int]) -> Iterator[CandidatePairs]:
    """Yield the pairs of rows with equal keys."""
    # Sort the rows, so that equal keys form groups; each row knows where its group starts.
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    begins = np.concatenate([np.ones(1, bool), ranked[1:] != ranked[:-1]])
    start = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
    # Sorting is stable: the rows of a group before a border are its first ones, and `last_before` is the last of them.
    next_start = np.append(np.flatnonzero(begins), len(keys))[np.cumsum(begins)]
    last_before = []
    for border in borders:
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(order < border)])
        last_before.append(start + before[next_start] - before[start] - 1)
    positions = np.arange(len(keys))
    for step in range(_NEIGHBOURS_COMPARED):
        for other in (start + step, positions - 1 - step, *(last - step for last in last_before)):
            in_group = (other >= start) & (other < positions)
            yield order[other[in_group]], order[positions[in_group]]


SIGNATURE_ENTRIES = 64
"""Entries of a signature. The standard error of the estimate is at most 1 / (2 * sqrt(64)) = 0.06, and 0.045 at a
similarity of 0.85."""

_GENERATOR = np.random.default_rng(1997)
_FACTORS = _GENERATOR.integers(0, 2**32, SIGNATURE_ENTRIES, dtype=np.uint32) | np.uint32(1)
_OFFSETS = _GENERATOR.integers(0, 2**32, SIGNATURE_ENTRIES, dtype=np.uint32)


def compute_signatures(texts: Sequence[str], entries: int = SIGNATURE_ENTRIES) -> NDArray[np.uint32]:
    """Return the first entries of the signatures of texts, shape [texts, entries].

    The minimum of two signatures is the signature of both texts together.
    """
    hashes, starts = hash_shingles(texts)
    signatures = np.empty((entries, len(texts)), np.uint32)
    for entry in range(entries):
        # With an odd factor this is a permutation of the 32-bit numbers; its minimum over a text is the entry.
        signatures[entry] = np.minimum.reduceat(hashes * _FACTORS[entry] + _OFFSETS[entry], starts)
    return signatures.T


def truncate_signatures(signatures: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Return the low 16 bits of the entries, which take half the memory.

    Different entries agree in these bits only once in 65,536 cases (Li & König 2010).
    """
    return np.ascontiguousarray(signatures, np.uint32).astype(np.uint16)
