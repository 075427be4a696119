"""The limit to the rows of a source: its first rows, in the order of its files."""

from collections.abc import Iterator

from lora_chat.data.reading.raw_row import RawRow


class RowLimiter:
    """A limit to the rows of several files together. Blank lines, and pieces that continue a text, count as no row."""

    def __init__(self, left: int | None) -> None:
        """Allow this many rows; None for all."""
        self._left = left

    @property
    def is_full(self) -> bool:
        """Return whether no further row may be read."""
        return self._left == 0

    def take(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        """Yield rows up to the limit, and read nothing after them."""
        if self._left is None:
            yield from rows
            return
        for row in rows:
            self._left -= counts_as_row(row)
            yield row
            if self._left == 0 and not is_continued(row):
                return


def counts_as_row(row: RawRow) -> bool:
    """Return whether a row counts for the limit."""
    return not row.blank and not _has_flag(row, "begins", False)


def is_continued(row: RawRow) -> bool:
    """Return whether a row is a piece of a text that the next row continues."""
    return _has_flag(row, "goes_on", True)


def _has_flag(row: RawRow, name: str, value: bool) -> bool:
    """Return whether a piece of a text file has this flag."""
    return isinstance(row.value, dict) and row.value.get(name) is value
