"""Read the rows of files: JSON lines, other JSON, tables, Parquet, Arrow or text, all but Parquet and Arrow compressed.

Each row has its line and either a value or a fault with the reason.
"""

import gzip
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO

from lora_chat.data.reading.arrow_files import read_arrow_stream, read_arrow_table, read_parquet
from lora_chat.data.reading.compression import open_decompressed
from lora_chat.data.reading.file_types import BYTE_ORDER_MARK, TABLE_SEPARATORS, detect_file_kind, is_row
from lora_chat.data.reading.json_rows import read_json_list, read_json_objects
from lora_chat.data.reading.raw_row import RawRow, shorten_reason
from lora_chat.data.reading.size_limits import (
    MAX_BLANK_LINES,
    MAX_ROW_BYTES,
    TOO_LONG_MESSAGE,
    TOO_MANY_BLANKS_MESSAGE,
    RowTooLongError,
    check_regular_file,
    read_bounded_lines,
)
from lora_chat.data.reading.streamed_file import DataFile
from lora_chat.data.reading.tables import read_table
from lora_chat.errors import DataError

_COLUMN_READERS: Mapping[str, Callable[[DataFile], Iterator[RawRow]]] = {
    "arrow": read_arrow_table,
    "arrow_stream": read_arrow_stream,
}
"""Reader of each kind of file that Arrow reads."""
_LINE_FEED = 10
_TEXT_PIECE_BYTES = 1 << 18
"""Size of a piece of plain text, in bytes; a book is read in pieces to save memory."""


@dataclass(frozen=True)
class RowStart:
    """The position in a file from which its rows are read."""

    rows: int = 0
    """Number of rows before it."""
    line: int = 0
    """Line or number of the row before it; 0 at the beginning."""
    offset: int | None = None
    """Offset of its first byte in a file of JSON lines; None if it is unknown."""


def read_rows(
    path: DataFile, columns: Collection[str] = (), *, plain_text: bool = False, start: RowStart = RowStart()
) -> Iterator[RawRow]:
    """Yield the rows of a file in order, lines of JSON unparsed; raises DataError if it cannot be opened or unpacked.

    A table is recognised by a header that has `columns` or the columns of a known format. With `plain_text`, a file
    of no other kind is one document, in pieces that say whether the next piece continues it. From a later `start` on,
    only Parquet and uncompressed JSON lines need not be read from the beginning.
    """
    if start.rows:
        yield from _read_from(path, columns, start, plain_text=plain_text)
        return
    with _convert_errors(path):
        check_regular_file(path)
        kind = detect_file_kind(path, columns, plain_text=plain_text)
        if kind == "parquet":
            yield from read_parquet(path)
            return
        if kind in _COLUMN_READERS:
            yield from _COLUMN_READERS[kind](path)
            return
        if kind == "json_objects":
            yield from read_json_objects(lambda: open_decompressed(path), lambda value: is_row(value, columns))
            return
        with open_decompressed(path) as file:
            if kind == "json_lines":
                yield from _read_json_lines(file)
            elif kind == "json_list":
                yield from read_json_list(file)
            elif kind == "text":
                yield from _read_text(file)
            else:
                separator = next(sign for table, sign in TABLE_SEPARATORS.items() if table == kind)
                yield from read_table(file, separator, columns)


def _read_from(path: DataFile, columns: Collection[str], start: RowStart, *, plain_text: bool) -> Iterator[RawRow]:
    """Yield the rows of a file from a later row on."""
    with _convert_errors(path):
        kind = detect_file_kind(path, columns, plain_text=plain_text)
        if kind == "parquet":
            yield from read_parquet(path, start.line)
            return
        if kind == "json_lines" and start.offset is not None:
            with open_decompressed(path) as file:
                if file.seekable():
                    file.seek(start.offset)
                    yield from _read_json_lines(file, start.line, start.offset)
                    return
    yield from islice(read_rows(path, columns, plain_text=plain_text), start.rows, None)


def read_lines(path: DataFile) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, split at line feeds only; raises DataError if it is unreadable."""
    with _convert_errors(path):
        check_regular_file(path)
        with open_decompressed(path) as file:
            try:
                yield from _read_numbered_lines(file)
            except RowTooLongError as error:
                raise DataError(f"{path}:{error.line}: {error}.") from error


@contextmanager
def _convert_errors(path: DataFile) -> Iterator[None]:
    """Raise DataError in place of errors from opening, reading or unpacking a file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"Cannot unpack {path}: it is damaged or truncated.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {shorten_reason(error.strerror or error)}") from error


def _read_numbered_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, without its end and without the byte order mark."""
    for number, raw in enumerate(read_bounded_lines(file), 1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def _read_json_lines(file: IO[bytes], line_before: int = 0, end: int = 0) -> Iterator[RawRow]:
    """Yield lines of JSON; consecutive blank lines are one row, so that millions of them cost little.

    `end` is the offset of the byte after the line before the first one.
    """
    begin = blank = 0
    try:
        for number, raw in enumerate(read_bounded_lines(file), line_before + 1):
            end += len(raw)
            if not raw.strip():
                begin, blank = begin or number, blank + 1
                if blank > MAX_BLANK_LINES:
                    yield RawRow(begin, fault=TOO_MANY_BLANKS_MESSAGE, ends_file=True)
                    return
                continue
            if blank:
                yield RawRow(begin, blank=True, lines=blank, end=end - len(raw))
                begin = blank = 0
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            yield RawRow(number, raw=line, is_cut_off=raw[-1] != _LINE_FEED, end=end)
    except RowTooLongError as error:
        yield RawRow(line_before + error.line, fault=str(error), ends_file=True)
    if blank:
        yield RawRow(begin, blank=True, lines=blank, end=end)


def _read_text(file: IO[bytes]) -> Iterator[RawRow]:
    """Yield pieces that end at ends of lines, so that no word is split; a blank piece is joined to another one."""
    piece: list[str] = []
    begin = size = 0
    is_first_piece, has_text = True, False
    lines = _read_numbered_lines(file)
    while True:
        try:
            number, raw = next(lines)
        except StopIteration:
            break
        except RowTooLongError as error:
            yield RawRow(error.line, fault=str(error), ends_file=True)
            break
        if len(piece) + size > MAX_ROW_BYTES:  # only blank lines, or one line
            yield RawRow(begin, fault=TOO_LONG_MESSAGE, ends_file=True)
            return
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield RawRow(number, fault=f"is not UTF-8 text (byte {error.start + 1} of the line)")
            continue
        if size >= _TEXT_PIECE_BYTES and has_text and line.strip():
            yield RawRow(
                begin,
                {"text": "\n".join(piece) + "\n", "begins": is_first_piece, "goes_on": True},
                lines=len(piece),
                size=size,
            )
            piece, begin, size, is_first_piece, has_text = [], 0, 0, False, False
        piece.append(line)
        begin, size, has_text = begin or number, size + len(raw), has_text or bool(line.strip())
    if piece:
        yield RawRow(begin, {"text": "\n".join(piece), "begins": is_first_piece}, lines=len(piece), size=size)
