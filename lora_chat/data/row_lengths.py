"""Token counts of rows, measured from whole columns, and the rows that are the largest."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Numbers = np.ndarray[Any, Any]

LengthField = Literal["tokens", "through_last_label", "supervised"]


@dataclass(frozen=True)
class RowLengths:
    """Token counts of rows; each field is (rows,)."""

    tokens: "Numbers"
    through_last_label: "Numbers"
    """Tokens up to the last one with loss; the fast path drops the rest of a row."""
    supervised: "Numbers"

    @property
    def longest(self) -> int:
        """Return the tokens of the longest row, at least 1."""
        return int(self.tokens.max(initial=1))

    @property
    def most_supervised(self) -> int:
        """Return the largest number of supervised tokens of a row, at least 1."""
        return int(self.supervised.max(initial=1))

    @cached_property
    def mean_tokens(self) -> float:
        """Return the mean length of a row; 0 without rows."""
        return float(self.tokens.mean()) if len(self.tokens) else 0.0

    def select(self, rows: "Numbers") -> "RowLengths":
        """Return the lengths of some rows."""
        return RowLengths(self.tokens[rows], self.through_last_label[rows], self.supervised[rows])

    def find_largest(self, field: LengthField, count: int) -> "Numbers":
        """Return the numbers of the largest rows by a field, as `find_largest` does; they are kept for later calls."""
        key = field, count
        if key not in self._largest:
            self._largest[key] = find_largest(getattr(self, field), count)
        return self._largest[key]

    def sum_up(self, field: LengthField) -> "LengthSums":
        """Return the sums of a field, which are kept for later calls."""
        if field not in self._sums:
            self._sums[field] = LengthSums.of(getattr(self, field))
        return self._sums[field]

    @cached_property
    def _largest(self) -> "dict[tuple[LengthField, int], Numbers]":
        return {}

    @cached_property
    def _sums(self) -> "dict[LengthField, LengthSums]":
        return {}


@dataclass(frozen=True)
class LengthSums:
    """Sums and limits of the lengths of some rows."""

    total: int
    mean: float
    squares: float
    """Sum of the squares."""
    shortest: int
    longest: int

    @classmethod
    def of(cls, lengths: "Numbers") -> "LengthSums":
        """Return the sums of lengths, of which there is at least one."""
        squares = float((lengths.astype(float) ** 2).sum())
        return cls(int(lengths.sum()), float(lengths.mean()), squares, int(lengths.min()), int(lengths.max()))


def concatenate_lengths(parts: Sequence[RowLengths]) -> RowLengths:
    """Return the lengths of several sets of rows in their order."""
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    none = np.zeros(0, np.int32)
    columns = zip(*[(part.tokens, part.through_last_label, part.supervised) for part in parts], strict=True)
    return RowLengths(*(np.concatenate([none, *column]) for column in columns)) if parts else RowLengths(*[none] * 3)


def find_largest(values: "Numbers", count: int) -> "Numbers":
    """Return the indices of the largest values in descending order; equal values keep their order.

    They are the first `count` indices of a stable sort, without sorting millions of values.
    """
    import numpy as np

    if count >= len(values):
        candidates = np.arange(len(values))
    else:
        limit = np.partition(values, len(values) - count)[len(values) - count]
        larger = np.flatnonzero(values > limit)
        equal = np.flatnonzero(values == limit)[: count - len(larger)]
        candidates = np.sort(np.concatenate([larger, equal]))
    order: Numbers = candidates[np.argsort(-values[candidates].astype(np.int64), kind="stable")]
    return order[:count]


def measure_masks(masks: "pa.ListArray") -> RowLengths:
    """Return the lengths of a column of masks of tokens with loss."""
    import numpy as np

    offsets = np.asarray(masks.offsets)
    # Positions of all tokens with loss, in the concatenation of the rows.
    labelled = np.flatnonzero(masks.values.to_numpy(zero_copy_only=False))
    begins, ends = offsets[:-1], offsets[1:]
    first, after = labelled.searchsorted(begins), labelled.searchsorted(ends)
    supervised = after - first
    # A row without loss is not shortened.
    last = np.append(labelled, 0)[np.maximum(after - 1, 0)]
    through_last_label = np.where(supervised > 0, last - begins + 1, ends - begins)
    columns = ends - begins, through_last_label, supervised
    return RowLengths(*(column.astype(np.int32) for column in columns))
