"""Files -> raw rows, each with its line: JSON lines, a JSON list, CSV, TSV, Parquet, text, any of them in gzip.

Every row is either a value or a fault with its reason.
"""

import glob
import gzip
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from lora_chat.data.reading.file_types import BYTE_ORDER_MARK, TABLE_SEPARATORS, detect_file_kind, open_decompressed
from lora_chat.data.reading.globs import expand_glob
from lora_chat.data.reading.json_array import InvalidJsonArrayError, read_json_array
from lora_chat.data.reading.raw_row import RawRow, is_valid_utf8, shorten_reason
from lora_chat.data.reading.size_limits import (
    MAX_BLANK_LINES,
    MAX_FILES,
    MAX_ROW_BYTES,
    TOO_LONG_MESSAGE,
    TOO_MANY_BLANKS_MESSAGE,
    RowTooLongError,
    check_regular_file,
    read_bounded_lines,
)
from lora_chat.data.reading.tables import read_parquet, read_table
from lora_chat.errors import DataError
from lora_chat.system.strict_json import is_nested_too_deeply

_MAX_SHOWN_NAME_CHARACTERS = 300
_TEXT_PIECE_BYTES = 1 << 18
"""Plain text comes in pieces of about as many bytes, so that a book need not fit into memory."""


def find_files(names: str | tuple[str, ...]) -> tuple[Path, ...]:
    """Files, folders (all files right in them, hidden ones left out) and globs, in a fixed order, none twice.

    Raises DataError for a name that leads to no file, or to more than MAX_FILES.
    """
    found: dict[Path, None] = {}
    for name in (names,) if isinstance(names, str) else names:
        try:
            inside = _list_files(name)
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise DataError(f"Cannot read {name[:_MAX_SHOWN_NAME_CHARACTERS]}: {error.strerror or error}.") from error
        if not inside:
            raise DataError(f"There is no file in {name}.")
        found |= dict.fromkeys(inside)
    for path in found:
        if not is_valid_utf8(str(path)):
            raise DataError(f"The name of {str(path)!a} is not UTF-8 text; give the file another one.")
    return tuple(found)


def _list_files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return _sort_files(name, (p for p in path.iterdir() if not p.name.startswith(".") and p.is_file()))
    if path.exists():
        return [path]
    if glob.has_magic(name):
        return _sort_files(name, dict.fromkeys(expand_glob(path)))
    raise DataError(f"There is no file {path}.")


def _sort_files(name: str, paths: Iterable[Path]) -> list[Path]:
    found = list(islice(paths, MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise DataError(f"{name} leads to more than {MAX_FILES:,} files; join them.")
    return sorted(found)


def read_rows(path: Path, columns: Collection[str] = (), *, plain_text: bool = False) -> Iterator[RawRow]:
    """The rows of a file in order, lines of JSON unparsed; raises DataError if it cannot be opened or unpacked.

    A table is recognised by a header that a known format has, or that holds `columns`. With `plain_text` a file
    that is nothing else is text: one document, in pieces of which all but the last say that it goes on.
    """
    with _convert_errors(path):
        check_regular_file(path)
        kind = detect_file_kind(path, columns, plain_text=plain_text)
        if kind == "parquet":
            yield from read_parquet(path)
            return
        with open_decompressed(path) as file:
            if kind == "json_lines":
                yield from _read_json_lines(file)
            elif kind == "json_list":
                yield from _read_json_list(file)
            elif kind == "text":
                yield from _read_text(file)
            else:
                yield from read_table(file, TABLE_SEPARATORS[kind])


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file's lines with their numbers, split at line feeds only; raises DataError if it cannot be read."""
    with _convert_errors(path):
        check_regular_file(path)
        with open_decompressed(path) as file:
            try:
                yield from _read_numbered_lines(file)
            except RowTooLongError as error:
                raise DataError(f"{path}:{error.line}: {error}.") from error


@contextmanager
def _convert_errors(path: Path) -> Iterator[None]:
    """Failures to open, read or unpack a file, as messages."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"Cannot unpack {path}: it is damaged or cut short.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {shorten_reason(error.strerror or error)}") from error


def _read_numbered_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, raw in enumerate(read_bounded_lines(file), 1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def _read_json_lines(file: IO[bytes]) -> Iterator[RawRow]:
    """Lines of JSON; blank ones that follow each other are one row, so that millions of them cost little."""
    begin = blank = 0
    try:
        for number, raw in _read_numbered_lines(file):
            if not raw.strip():
                begin, blank = begin or number, blank + 1
                if blank > MAX_BLANK_LINES:
                    yield RawRow(begin, fault=TOO_MANY_BLANKS_MESSAGE, ends_file=True)
                    return
                continue
            if blank:
                yield RawRow(begin, blank=True, lines=blank)
                begin = blank = 0
            yield RawRow(number, raw=raw)
    except RowTooLongError as error:
        yield RawRow(error.line, fault=str(error), ends_file=True)
    if blank:
        yield RawRow(begin, blank=True, lines=blank)


def _read_text(file: IO[bytes]) -> Iterator[RawRow]:
    """Pieces that end where lines end, so that no character and no word is split; none is blank beside others."""
    held: list[str] = []
    begin = size = 0
    begins, some = True, False
    lines = _read_numbered_lines(file)
    while True:
        try:
            number, raw = next(lines)
        except StopIteration:
            break
        except RowTooLongError as error:
            yield RawRow(error.line, fault=str(error), ends_file=True)
            break
        if len(held) + size > MAX_ROW_BYTES:  # nothing but blank lines, or one word
            yield RawRow(begin, fault=TOO_LONG_MESSAGE, ends_file=True)
            return
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield RawRow(number, fault=f"is not UTF-8 text (byte {error.start + 1} of the line)")
            continue
        if size >= _TEXT_PIECE_BYTES and some and line.strip():
            yield RawRow(
                begin, {"text": "\n".join(held) + "\n", "begins": begins, "goes_on": True}, lines=len(held), size=size
            )
            held, begin, size, begins, some = [], 0, 0, False, False
        held.append(line)
        begin, size, some = begin or number, size + len(raw), some or bool(line.strip())
    if held:
        yield RawRow(begin, {"text": "\n".join(held), "begins": begins}, lines=len(held), size=size)


def _read_json_list(file: IO[bytes]) -> Iterator[RawRow]:
    try:
        for line, value, size in read_json_array(file):
            yield (
                RawRow(line, fault="is nested too deeply")
                if is_nested_too_deeply(value)
                else RawRow(line, value, size=size)
            )
    except InvalidJsonArrayError as error:
        yield RawRow(error.line, fault=str(error), ends_file=True)
