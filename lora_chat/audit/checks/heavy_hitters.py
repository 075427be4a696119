"""The most frequent items of a stream, in fixed memory."""

from typing import Generic, TypeVar

T = TypeVar("T")


class FrequentItems(Generic[T]):
    """Misra and Gries 1982: an item with a larger share than 1 / capacity is kept; counts may lack that share."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[int, int] = {}
        self._first: dict[int, T] = {}

    def add(self, key: int, first: T) -> None:
        """Count an item by its key; `first` is remembered from its first time."""
        if key in self._counts:
            self._counts[key] += 1
            return
        self._counts[key] = 1
        self._first[key] = first
        if len(self._counts) > self._capacity:
            self._counts = {k: n - 1 for k, n in self._counts.items() if n > 1}
            self._first = {k: self._first[k] for k in self._counts}

    def most_common(self) -> list[tuple[T, int]]:
        """What is remembered of each item kept, with its count, the most frequent first."""
        return [(self._first[key], n) for key, n in sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))]
