"""CSV, TSV and Parquet -> raw rows."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lora_chat.dialogues.raw_row import RawRow, first_line, is_text
from lora_chat.errors import DataError
from lora_chat.system.strict_json import parse_json

_LONGEST_CELL = 1 << 27


def read_table(file: IO[bytes], separator: str) -> Iterator[RawRow]:
    """Rows under a header; a cell that is empty is None."""
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=separator, strict=True)
    line = 1
    try:
        header = next(cells for cells in reader if cells)
        if len(set(header)) != len(header):
            yield RawRow(1, fault="names a column twice")
            return
        line = reader.line_num + 1
        for cells in reader:
            if not cells or cells == [""]:
                yield RawRow(line, blank=True)
            elif len(cells) != len(header):
                yield RawRow(line, fault=f"has {len(cells)} cells where the header has {len(header)}")
            else:
                yield _table_row(line, dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        yield RawRow(line, fault=f"is not valid CSV: {error}; nothing after it can be read", breaks_off=True)


def _table_row(line: int, cells: dict[str, str]) -> RawRow:
    if not is_text("".join(cells.values())):
        return RawRow(line, fault="is not UTF-8 text")
    try:
        return RawRow(line, {key: _cell(key, cell) if cell else None for key, cell in cells.items()})
    except ValueError as error:
        return RawRow(line, fault=str(error))


def _cell(key: str, cell: str) -> Any:
    """Lists of messages stand in tables as JSON text."""
    return parse_json(cell) if key in ("messages", "conversations", "conversation", "history") else cell


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Rows by their number; raises DataError if the file is damaged."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in _batch_rows(batch, number):
                    number += 1
                    yield row
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"Cannot read {path}: {first_line(error)}") from error


def _batch_rows(batch: Any, before: int) -> Iterator[RawRow]:
    """Rows one at a time where one of them holds what Python has no value for."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        for place in range(batch.num_rows):
            try:
                yield RawRow(before + place + 1, batch.slice(place, 1).to_pylist()[0])
            except (ValueError, OverflowError) as error:
                yield RawRow(before + place + 1, fault=f"cannot be read: {error}")
        return
    yield from (RawRow(before + place, value) for place, value in enumerate(values, 1))
