"""CSV, TSV and Parquet -> raw rows."""

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lora_chat.data.reading.raw_row import RawRow, is_valid_utf8, shorten_reason
from lora_chat.data.reading.size_limits import (
    MAX_BLANK_LINES,
    MAX_COLUMNS,
    MAX_ROW_BYTES,
    TOO_LONG_MESSAGE,
    TOO_MANY_BLANKS_MESSAGE,
    RowTooLongError,
    limit_memory_growth,
    max_decompressed_bytes,
)
from lora_chat.errors import DataError
from lora_chat.system.strict_json import parse_strict_json

_PARQUET_BATCH_ROWS = 256
"""Rows of Parquet that are decoded together."""


def read_table(file: IO[bytes], separator: str) -> Iterator[RawRow]:
    """Rows under a header; a cell that is empty is None."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _BoundedLines(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    line = 1
    try:
        header = next(cells for cells in reader if cells)
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


class _BoundedLines:
    """Lines for a reader of CSV, none of whose records is longer than MAX_ROW_BYTES characters."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.size = 0
        """Characters of the record that is being read."""

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
    if not is_valid_utf8("".join(cells.values())):
        return RawRow(line, fault="is not UTF-8 text")
    size = sum(map(len, cells.values())) + 64 * len(cells)
    try:
        return RawRow(line, {key: _parse_cell(key, cell) if cell else None for key, cell in cells.items()}, size=size)
    except ValueError as error:
        return RawRow(line, fault=str(error))


def _parse_cell(key: str, cell: str) -> Any:
    """Lists of messages stand in tables as JSON text."""
    return parse_strict_json(cell) if key in ("messages", "conversations", "conversation", "history") else cell


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Rows by their number; raises DataError if the file is damaged, or decoding it takes too much memory."""
    import pyarrow

    try:
        number, left = 0, max_decompressed_bytes(path)
        for batch in _read_batches(path):
            left -= _batch_bytes(batch)
            if left < 0:
                raise ValueError("it unpacks to far more than it stores; write it as JSON lines if it is meant so")
            for row in _read_batch_rows(batch, number):
                number += 1
                yield row
    except MemoryError as error:
        raise DataError(f"Cannot read {path}: decoding it takes too much memory.") from error
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"Cannot read {path}: {shorten_reason(error)}") from error


def _read_batches(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with limit_memory_growth():
        file = parquet.ParquetFile(path)
        columns = file.metadata.num_columns
        schema = file.schema_arrow
    with file:
        if columns > MAX_COLUMNS:
            raise ValueError(f"it has {columns:,} columns; {MAX_COLUMNS:,} are allowed")
        _check_types(schema)
        batches = file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, use_threads=False)
        while True:
            with limit_memory_growth():
                batch = next(batches, None)
                if batch is None:
                    return
                decoded = _without_dictionaries(batch)
            yield decoded


def _check_types(schema: Any) -> None:
    """Raise ValueError for types in which a few bytes can stand for any number of values."""
    from pyarrow import types

    inside = [field.type for field in schema if not types.is_dictionary(field.type)]
    while inside:
        if any(types.is_dictionary(one) or "list_view" in str(one) for one in inside):
            raise ValueError("it has dictionaries or views inside lists or structures")
        inside = [one.field(n).type for one in inside for n in range(one.num_fields)]


def _without_dictionaries(batch: Any) -> Any:
    """A batch whose columns hold their values themselves, so that its size is that of its rows."""
    import pyarrow
    from pyarrow import types

    columns = [column.dictionary_decode() if types.is_dictionary(column.type) else column for column in batch.columns]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _batch_bytes(batch: Any) -> int:
    """Bytes of a batch, with what its rows and values cost in Python."""
    return int(batch.nbytes + 256 * batch.num_rows + 8 * sum(map(_count_values, batch.columns)))


def _count_values(array: Any) -> int:
    """Values of an array, those inside its lists and structures too."""
    from pyarrow import types

    found = len(array)
    if types.is_struct(array.type):
        found += sum(map(_count_values, array.flatten()))
    elif types.is_nested(array.type) and hasattr(array, "flatten"):
        found += _count_values(array.flatten())
    return int(found)


def _read_batch_rows(batch: Any, before: int) -> Iterator[RawRow]:
    """Rows one at a time where they are large, or one of them holds what Python has no value for."""
    size = _batch_bytes(batch)
    if size <= MAX_ROW_BYTES:
        with suppress(ValueError, OverflowError):
            values = batch.to_pylist()
            size //= max(1, batch.num_rows)
            yield from (RawRow(before + place, value, size=size) for place, value in enumerate(values, 1))
            return
    for place in range(batch.num_rows):
        one = batch.slice(place, 1)
        size = _batch_bytes(one)
        if size > MAX_ROW_BYTES:
            yield RawRow(before + place + 1, fault=f"is larger than {MAX_ROW_BYTES >> 20} MiB")
            continue
        try:
            yield RawRow(before + place + 1, one.to_pylist()[0], size=size)
        except (ValueError, OverflowError) as error:
            yield RawRow(before + place + 1, fault=f"cannot be read: {error}")
