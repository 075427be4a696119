"""Read the rows of Parquet and of Arrow files, in batches with a limit on memory; nothing in them is run."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.data.reading.arrow_values import convert_batch
from lora_chat.data.reading.raw_row import RawRow, shorten_reason
from lora_chat.data.reading.size_limits import MAX_COLUMNS, MAX_ROW_BYTES, limit_memory_growth, max_decompressed_bytes
from lora_chat.data.reading.streamed_file import DataFile, require_local
from lora_chat.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

_BATCH_ROWS = 256
"""Number of rows that are decoded together."""
_TOO_LARGE_MESSAGE = "it decompresses to far more than it stores; if that is intended, write it as JSON lines"


def read_parquet(path: DataFile, first_row: int = 0) -> Iterator[RawRow]:
    """Yield rows with their numbers from a row on, counted from 0.

    Raises DataError if the file is damaged or takes too much memory to decode.
    """
    return _read_rows(path, lambda path: _read_parquet_batches(path, first_row), first_row)


def read_arrow_table(path: DataFile) -> Iterator[RawRow]:
    """Yield the rows of an Arrow file like `read_parquet`."""
    return _read_rows(path, lambda path: _read_arrow_batches(path, is_stream=False))


def read_arrow_stream(path: DataFile) -> Iterator[RawRow]:
    """Yield the rows of an Arrow stream, as `datasets.save_to_disk` writes it, like `read_parquet`."""
    return _read_rows(path, lambda path: _read_arrow_batches(path, is_stream=True))


def _read_rows(
    path: DataFile, read_batches: Callable[[DataFile], Iterator["pa.RecordBatch"]], number: int = 0
) -> Iterator[RawRow]:
    """Yield the rows of batches, up to a limit of bytes for the whole file."""
    import pyarrow

    try:
        left = max_decompressed_bytes(path)
        for batch in read_batches(path):
            left -= _batch_bytes(batch)
            if left < 0:
                raise ValueError(_TOO_LARGE_MESSAGE)
            for row in _read_batch_rows(batch, number):
                number += 1
                yield row
    except MemoryError as error:
        raise DataError(f"Cannot read {path}: decoding it takes too much memory.") from error
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"Cannot read {path}: {shorten_reason(error)}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"Cannot read {path}: {shorten_reason(error)}") from error


def _read_parquet_batches(path: DataFile, first_row: int) -> Iterator["pa.RecordBatch"]:
    """Yield batches of rows from a row on, decoded under the memory limit; row groups before it are not read."""
    import pyarrow
    from pyarrow import parquet

    with limit_memory_growth():
        if isinstance(path, Path):
            file = parquet.ParquetFile(path)
        else:  # a file on the hub, of which nothing is read before it is needed
            file = parquet.ParquetFile(pyarrow.PythonFile(path.open("rb"), "r"), pre_buffer=False)
        columns = file.metadata.num_columns
        schema = file.schema_arrow
    with file:
        if columns > MAX_COLUMNS:
            raise ValueError(f"it has {columns:,} columns; {MAX_COLUMNS:,} are allowed")
        _check_types(schema)
        groups, skipped = _find_row_groups(file.metadata, first_row)
        if not groups:
            return
        batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, use_threads=False)
        while True:
            with limit_memory_growth():
                batch = next(batches, None)
                if batch is None:
                    return
                decoded = _without_dictionaries(batch)
            if skipped < decoded.num_rows:
                yield decoded.slice(skipped) if skipped else decoded
            skipped = max(0, skipped - decoded.num_rows)


def _find_row_groups(metadata: "parquet.FileMetaData", first_row: int) -> tuple[list[int], int]:
    """Return the row groups from the one with a row on, and the number of rows before it in that group."""
    rows_before = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if first_row < rows_before + rows or (not first_row and not rows):
            return list(range(group, metadata.num_row_groups)), first_row - rows_before
        rows_before += rows
    return [], 0


def _read_arrow_batches(file_or_path: DataFile, *, is_stream: bool) -> Iterator["pa.RecordBatch"]:
    """Yield small batches of an Arrow file or stream, whose offsets are checked before a value is read."""
    import pyarrow

    path = require_local(file_or_path, "an Arrow file")
    with pyarrow.OSFile(str(path)) as file:  # not mapped, because a file that shrinks would end the process
        with limit_memory_growth():
            reader = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
        if len(reader.schema) > MAX_COLUMNS:
            raise ValueError(f"it has {len(reader.schema):,} columns; {MAX_COLUMNS:,} are allowed")
        _check_types(reader.schema)
        if any("view" in str(field.type) or "run_end" in str(field.type) for field in reader.schema):
            raise ValueError("it has columns of views or of repeated values. Fix: save it as Parquet")
        batches = iter(reader) if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        while True:
            with limit_memory_growth():
                batch = next(batches, None)
                if batch is None:
                    return
                if 256 * batch.num_rows > max_decompressed_bytes(path):  # rows of nulls need no bytes
                    raise ValueError(_TOO_LARGE_MESSAGE)
                batch.validate(full=True)
            for begin in range(0, batch.num_rows, _BATCH_ROWS):
                with limit_memory_growth():
                    decoded = _without_dictionaries(batch.slice(begin, _BATCH_ROWS))
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
