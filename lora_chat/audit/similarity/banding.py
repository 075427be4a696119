"""Locality-sensitive hashing: which of many signatures are worth comparing (Leskovec et al., chapter 3)."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEIGHBOURS = 4


class Pairs(NamedTuple):
    """Rows to compare; `earlier` < `later`, element by element."""

    earlier: NDArray[np.int64]
    later: NDArray[np.int64]


def candidate_pairs(signatures: NDArray[np.uint16], training: int) -> Iterator[Pairs]:
    """Rows that agree in a band of four entries, band by band: two of similarity s meet with 1 - (1 - s**4)**16.

    The first `training` rows are the training dialogues. Of many rows that agree each is compared with the first, with
    its neighbours and, in validation, with the last training rows, so that the work stays linear.
    """
    bands = np.ascontiguousarray(signatures).view(np.uint64)
    for keys in bands.T:
        yield from _pairs_of_band(keys, training)


def _pairs_of_band(keys: NDArray[np.uint64], training: int) -> Iterator[Pairs]:
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    begins = np.concatenate([np.ones(1, bool), ranked[1:] != ranked[:-1]])
    start = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
    in_training = np.cumsum(order < training)
    before = np.concatenate([np.zeros(1, np.int64), in_training])
    next_start = np.append(np.flatnonzero(begins), len(keys))[np.cumsum(begins)]
    last_training = start + before[next_start] - before[start] - 1
    places = np.arange(len(keys))
    for step in range(_NEIGHBOURS):
        for other in (start + step, places - 1 - step, last_training - step):
            worth = (other >= start) & (other < places)
            yield Pairs(order[other[worth]], order[places[worth]])
