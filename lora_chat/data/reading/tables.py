"""Read the rows of CSV, TSV and Parquet."""

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lora_chat.data.reading.arrow_values import convert_batch
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

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET_BATCH_ROWS = 256
"""Number of Parquet rows that are decoded together."""


def read_table(file: IO[bytes], separator: str) -> Iterator[RawRow]:
    """Yield the rows below a header; an empty cell is None."""
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


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Yield rows with their numbers; raises DataError if the file is damaged or takes too much memory to decode."""
    import pyarrow

    try:
        number, left = 0, max_decompressed_bytes(path)
        for batch in _read_batches(path):
            left -= _batch_bytes(batch)
            if left < 0:
                raise ValueError(
                    "it decompresses to far more than it stores; if that is intended, write it as JSON lines"
                )
            for row in _read_batch_rows(batch, number):
                number += 1
                yield row
    except MemoryError as error:
        raise DataError(f"Cannot read {path}: decoding it takes too much memory.") from error
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"Cannot read {path}: {shorten_reason(error)}") from error


def _read_batches(path: Path) -> Iterator["pa.RecordBatch"]:
    """Yield batches of rows, decoded under the memory limit."""
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


def _check_types(schema: "pa.Schema") -> None:
    """Raise ValueError for types in which a few bytes can represent any number of values."""
    from pyarrow import types

    level = [field.type for field in schema if not types.is_dictionary(field.type)]
    while level:
        if any(types.is_dictionary(data_type) or "list_view" in str(data_type) for data_type in level):
            raise ValueError("it has dictionaries or views inside lists or structures")
        level = [data_type.field(n).type for data_type in level for n in range(data_type.num_fields)]


def _without_dictionaries(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Return a batch with the values of dictionary columns in place, so that its size is the size of its rows."""
    import pyarrow
    from pyarrow import types

    columns = [column.dictionary_decode() if types.is_dictionary(column.type) else column for column in batch.columns]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _batch_bytes(batch: "pa.RecordBatch") -> int:
    """Return the bytes of a batch, with the cost of its rows and values in Python."""
    return int(batch.nbytes + 256 * batch.num_rows + 8 * sum(map(_count_values, batch.columns)))


def _count_values(array: "pa.Array") -> int:
    """Count the values of an array, including the values inside lists and structures."""
    from pyarrow import types

    count = len(array)
    if types.is_struct(array.type):
        count += sum(map(_count_values, array.flatten()))
    elif types.is_nested(array.type) and hasattr(array, "flatten"):
        count += _count_values(array.flatten())
    return int(count)


def _read_batch_rows(batch: "pa.RecordBatch", rows_before: int) -> Iterator[RawRow]:
    """Yield the rows of a batch, converted one by one if they are large or one of them has no value in Python."""
    size = _batch_bytes(batch)
    if size <= MAX_ROW_BYTES:
        with suppress(ValueError, OverflowError):
            values = convert_batch(batch)
            size //= max(1, batch.num_rows)
            yield from (RawRow(rows_before + number, value, size=size) for number, value in enumerate(values, 1))
            return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        size = _batch_bytes(row)
        if size > MAX_ROW_BYTES:
            yield RawRow(rows_before + index + 1, fault=f"is larger than {MAX_ROW_BYTES >> 20} MiB")
            continue
        try:
            yield RawRow(rows_before + index + 1, convert_batch(row)[0], size=size)
        except (ValueError, OverflowError) as error:
            yield RawRow(rows_before + index + 1, fault=f"cannot be read: {error}")
