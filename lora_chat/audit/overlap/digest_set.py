"""Sorted digests of 64 bits. A set that is too large is a sample, chosen by the digests themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_DIGESTS = 1_250_000
"""Maximum number of digests in a set, 8 bytes each."""
DIGEST_BITS = 64


@dataclass(frozen=True)
class DigestSet:
    """Different digests, sorted."""

    values: NDArray[np.uint64]
    """Digests, shape [digests], ascending."""
    shift: int = 0
    """Number of leading zero bits of every digest in the set; others were left out."""

    def covers(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which digests would be in this set if they had been added, shape [digests]."""
        return is_sampled(digests, self.shift)

    def contains(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which digests are in this set, shape [digests]."""
        if not len(self.values):
            return np.zeros(len(digests), bool)
        places = np.minimum(np.searchsorted(self.values, digests), len(self.values) - 1)
        is_in_set: NDArray[np.bool_] = self.values[places] == digests
        return is_in_set


def build_digest_set(
    digests: Sequence[int] | NDArray[np.uint64], shift: int = 0, limit: int = MAX_DIGESTS
) -> DigestSet:
    """Return the set of some digests, of which every second one is left out until at most `limit` remain."""
    values = np.unique(np.asarray(digests, np.uint64))
    while len(values) > limit:
        shift += 1
        values = values[is_sampled(values, shift)]
    return DigestSet(values, shift)


def merge_digest_sets(first: DigestSet, second: DigestSet) -> DigestSet:
    """Return the digests of two sets, in the coarser sample of both."""
    shift = max(first.shift, second.shift)
    values = np.concatenate([first.values, second.values])
    return build_digest_set(values[is_sampled(values, shift)], shift)


def is_sampled(digests: NDArray[np.uint64], shift: int) -> NDArray[np.bool_]:
    """Return which digests have `shift` leading zero bits, shape [digests]."""
    if not shift:
        return np.ones(len(digests), bool)
    sampled: NDArray[np.bool_] = digests >> np.uint64(DIGEST_BITS - shift) == 0
    return sampled
