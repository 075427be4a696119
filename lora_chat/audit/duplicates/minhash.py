"""MinHash signatures (Broder 1997): the share of equal entries estimates the Jaccard similarity of two texts."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_chat.audit.duplicates.shingles import hash_shingles

_NEIGHBOURS_COMPARED = 4


class CandidatePairs(NamedTuple):
    """Rows to compare; `earlier` < `later`, element by element."""

    earlier: NDArray[np.int64]
    later: NDArray[np.int64]


def find_candidate_pairs(signatures: NDArray[np.uint16], training_count: int) -> Iterator[CandidatePairs]:
    """Rows that agree in a band of four entries, band by band: two of similarity s meet with 1 - (1 - s**4)**16.

    The first `training_count` rows are the training dialogues. Of many rows that agree each is compared with the
    first, with its neighbours and, in validation, with the last training rows, so that the work stays linear.
    """
    bands = np.ascontiguousarray(signatures).view(np.uint64)
    for keys in bands.T:
        yield from _find_band_pairs(keys, training_count)


def _find_band_pairs(keys: NDArray[np.uint64], training_count: int) -> Iterator[CandidatePairs]:
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    begins = np.concatenate([np.ones(1, bool), ranked[1:] != ranked[:-1]])
    start = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
    in_training = np.cumsum(order < training_count)
    before = np.concatenate([np.zeros(1, np.int64), in_training])
    next_start = np.append(np.flatnonzero(begins), len(keys))[np.cumsum(begins)]
    last_training = start + before[next_start] - before[start] - 1
    places = np.arange(len(keys))
    for step in range(_NEIGHBOURS_COMPARED):
        for other in (start + step, places - 1 - step, last_training - step):
            worth = (other >= start) & (other < places)
            yield CandidatePairs(order[other[worth]], order[places[worth]])


SIGNATURE_ENTRIES = 64
"""The estimate's standard error is at most 1 / (2 * sqrt(64)) = 0.06, and 0.045 at a similarity of 0.85."""

_GENERATOR = np.random.default_rng(1997)
_FACTORS = _GENERATOR.integers(0, 2**32, SIGNATURE_ENTRIES, dtype=np.uint32) | np.uint32(1)
_OFFSETS = _GENERATOR.integers(0, 2**32, SIGNATURE_ENTRIES, dtype=np.uint32)


def compute_signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Signatures of texts, shape [texts, SIGNATURE_ENTRIES]; that of two texts together is the minimum of theirs."""
    hashes, starts = hash_shingles(texts)
    signatures = np.empty((SIGNATURE_ENTRIES, len(texts)), np.uint32)
    for entry in range(SIGNATURE_ENTRIES):  # an odd factor makes each a permutation of the 32-bit numbers
        signatures[entry] = np.minimum.reduceat(hashes * _FACTORS[entry] + _OFFSETS[entry], starts)
    return signatures.T


def truncate_signatures(signatures: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Half the memory: the low 16 bits differ as well as all do, but for one in 65,536 (Li & König 2010)."""
    return np.ascontiguousarray(signatures, np.uint32).astype(np.uint16)
