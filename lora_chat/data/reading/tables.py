"""Read the rows of tables: CSV and others with a separator."""

import csv
import io
from collections.abc import Collection, Iterator
from typing import IO, TYPE_CHECKING

from lora_chat.data.reading.raw_row import RawRow, is_valid_utf8
from lora_chat.data.reading.size_limits import (
    MAX_BLANK_LINES,
    MAX_COLUMNS,
    MAX_ROW_BYTES,
    TOO_LONG_MESSAGE,
    TOO_MANY_BLANKS_MESSAGE,
    RowTooLongError,
)
from lora_chat.data.reading.table_headers import clean_header, is_separator_line
from lora_chat.system.strict_json import parse_strict_json

if TYPE_CHECKING:
    pass

_PARQUET_BATCH_ROWS = 256
"""Number of Parquet rows that are decoded together."""


def read_table(file: IO[bytes], separator: str, columns: Collection[str] = ()) -> Iterator[RawRow]:
    """Yield the rows below a header; an empty cell is None. Names in `columns` are known to the recipe."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _BoundedLines(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    line = 1
    try:
        header = next(cells for cells in reader if cells and not is_separator_line(cells))
        unnamed = len(header) - len(_drop_unnamed(header))
        header = clean_header(_drop_unnamed(header), columns)
        if len(header) > MAX_COLUMNS:
            yield RawRow(1, fault=f"has more than {MAX_COLUMNS:,} columns; nothing after it is read", ends_file=True)
            return
        if len(set(header)) != len(header):
            yield RawRow(1, fault="names a column twice")
            return
        line, blank = reader.line_num + 1, 0
        for cells in reader:
            blank = 0 if cells and cells != [""] else blank + 1
            if blank > MAX_BLANK_LINES:
                yield RawRow(line - blank + 1, fault=TOO_MANY_BLANKS_MESSAGE, ends_file=True)
                return
            if blank:
                yield RawRow(line, blank=True)
            elif unnamed and len(cells) == len(header) + unnamed and not any(cells[len(header) :]):
                yield _parse_cells(line, dict(zip(header, cells, strict=False)))
            elif len(cells) != len(header):
                yield RawRow(line, fault=f"has {len(cells)} cells where the header has {len(header)}")
            else:
                yield _parse_cells(line, dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
            lines.size = 0
    except RowTooLongError:
        yield RawRow(line, fault=TOO_LONG_MESSAGE, ends_file=True)
    except csv.Error as error:
        yield RawRow(line, fault=f"is not valid CSV: {error}; nothing after it can be read", ends_file=True)


def _drop_unnamed(header: list[str]) -> list[str]:
    """Return a header without empty names at its end, which spreadsheets write for empty columns."""
    end = next((number for number in range(len(header), 0, -1) if header[number - 1].strip()), 0)
    return header[:end] if len(header) - end > 1 else header


class _BoundedLines:
    """Lines for a CSV reader, whose records have at most MAX_ROW_BYTES characters."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.size = 0
        """Characters of the current record."""

    def __iter__(self) -> "_BoundedLines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_ROW_BYTES + 1)
        self.size += len(line)
        if self.size > MAX_ROW_BYTES:
            raise RowTooLongError(0)
        if not line:
            raise StopIteration
        return line


def _parse_cells(line: int, cells: dict[str, str]) -> RawRow:
    """Return a record as a row, with its lists parsed."""
    if not is_valid_utf8("".join(cells.values())):
        return RawRow(line, fault="is not UTF-8 text")
    size = sum(map(len, cells.values())) + 64 * len(cells)
    try:
        return RawRow(line, {key: _parse_cell(key, cell) if cell else None for key, cell in cells.items()}, size=size)
    except ValueError as error:
        return RawRow(line, fault=str(error))


def _parse_cell(key: str, cell: str) -> object:
    """Return a cell; lists of messages are JSON text in tables and are parsed."""
    return parse_strict_json(cell) if key in ("messages", "conversations", "conversation", "history") else cell
