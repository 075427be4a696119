"""The most frequent items of a stream, in fixed memory."""

from typing import Generic, TypeVar

T = TypeVar("T")


class FrequentItems(Generic[T]):
    """A counter that keeps every item whose share exceeds 1 / capacity (Misra and Gries 1982).

    Counts can be too low by that share.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[int, int] = {}
        self._values: dict[int, T] = {}

    def add(self, key: int, value: T) -> None:
        """Count an item by its key, and keep the value of its first occurrence."""
        if key in self._counts:
            self._counts[key] += 1
            return
        self._counts[key] = 1
        self._values[key] = value
        if len(self._counts) > self._capacity:
            self._counts = {k: n - 1 for k, n in self._counts.items() if n > 1}
            self._values = {k: self._values[k] for k in self._counts}

    def most_common(self) -> list[tuple[T, int]]:
        """Return the value and the count of each kept item, the most frequent first."""
        counts = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [(self._values[key], count) for key, count in counts]
