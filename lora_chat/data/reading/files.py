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

from lora_chat.data.reading.file_types import MARK, TABLES, open_unpacked, recognise_kind
from lora_chat.data.reading.globs import expand
from lora_chat.data.reading.json_array import BrokenListError, read_list
from lora_chat.data.reading.raw_row import RawRow, first_line, is_text
from lora_chat.data.reading.size_limits import (
    LARGEST_ROW,
    MOST_BLANK,
    MOST_FILES,
    ONLY_BLANK,
    TOO_LONG,
    TooLongError,
    check_regular,
    read_bounded_lines,
)
from lora_chat.data.reading.tables import read_parquet, read_table
from lora_chat.errors import DataError
from lora_chat.system.strict_json import is_deep

_NAME_LENGTH = 300
_PIECE = 1 << 18
"""Plain text comes in pieces of about as many bytes, so that a book need not fit into memory."""


def find_files(names: str | tuple[str, ...]) -> tuple[Path, ...]:
    """Files, folders (all files right in them, hidden ones left out) and globs, in a fixed order, none twice.

    Raises DataError for a name that leads to no file, or to more than MOST_FILES.
    """
    found: dict[Path, None] = {}
    for name in (names,) if isinstance(names, str) else names:
        try:
            inside = _inside(name)
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise DataError(f"Cannot read {name[:_NAME_LENGTH]}: {error.strerror or error}.") from error
        if not inside:
            raise DataError(f"There is no file in {name}.")
        found |= dict.fromkeys(inside)
    for path in found:
        if not is_text(str(path)):
            raise DataError(f"The name of {str(path)!a} is not UTF-8 text; give the file another one.")
    return tuple(found)


def _inside(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return _sorted(name, (p for p in path.iterdir() if not p.name.startswith(".") and p.is_file()))
    if path.exists():
        return [path]
    if glob.has_magic(name):
        return _sorted(name, dict.fromkeys(expand(path)))
    raise DataError(f"There is no file {path}.")


def _sorted(name: str, paths: Iterable[Path]) -> list[Path]:
    found = list(islice(paths, MOST_FILES + 1))
    if len(found) > MOST_FILES:
        raise DataError(f"{name} leads to more than {MOST_FILES:,} files; join them.")
    return sorted(found)


def read_rows(path: Path, columns: Collection[str] = (), *, plain_text: bool = False) -> Iterator[RawRow]:
    """The rows of a file in order, lines of JSON unparsed; raises DataError if it cannot be opened or unpacked.

    A table is recognised by a header that a known format has, or that holds `columns`. With `plain_text` a file
    that is nothing else is text: one document, in pieces of which all but the last say that it goes on.
    """
    with _explained(path):
        check_regular(path)
        kind = recognise_kind(path, columns, plain_text=plain_text)
        if kind == "parquet":
            yield from read_parquet(path)
            return
        with open_unpacked(path) as file:
            if kind == "json_lines":
                yield from _json_lines(file)
            elif kind == "json_list":
                yield from _json_list(file)
            elif kind == "text":
                yield from _text(file)
            else:
                yield from read_table(file, TABLES[kind])


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file's lines with their numbers, split at line feeds only; raises DataError if it cannot be read."""
    with _explained(path):
        check_regular(path)
        with open_unpacked(path) as file:
            try:
                yield from _lines(file)
            except TooLongError as error:
                raise DataError(f"{path}:{error.line}: {error}.") from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Failures to open, read or unpack a file, as messages."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"Cannot unpack {path}: it is damaged or cut short.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {first_line(error.strerror or error)}") from error


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, raw in enumerate(read_bounded_lines(file), 1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        yield number, line.removeprefix(MARK) if number == 1 else line


def _json_lines(file: IO[bytes]) -> Iterator[RawRow]:
    """Lines of JSON; blank ones that follow each other are one row, so that millions of them cost little."""
    begin = blank = 0
    try:
        for number, raw in _lines(file):
            if not raw.strip():
                begin, blank = begin or number, blank + 1
                if blank > MOST_BLANK:
                    yield RawRow(begin, fault=ONLY_BLANK, breaks_off=True)
                    return
                continue
            if blank:
                yield RawRow(begin, blank=True, lines=blank)
                begin = blank = 0
            yield RawRow(number, raw=raw)
    except TooLongError as error:
        yield RawRow(error.line, fault=str(error), breaks_off=True)
    if blank:
        yield RawRow(begin, blank=True, lines=blank)


def _text(file: IO[bytes]) -> Iterator[RawRow]:
    """Pieces that end where lines end, so that no character and no word is split; none is blank beside others."""
    held: list[str] = []
    begin = size = 0
    begins, some = True, False
    lines = _lines(file)
    while True:
        try:
            number, raw = next(lines)
        except StopIteration:
            break
        except TooLongError as error:
            yield RawRow(error.line, fault=str(error), breaks_off=True)
            break
        if len(held) + size > LARGEST_ROW:  # nothing but blank lines, or one word
            yield RawRow(begin, fault=TOO_LONG, breaks_off=True)
            return
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield RawRow(number, fault=f"is not UTF-8 text (byte {error.start + 1} of the line)")
            continue
        if size >= _PIECE and some and line.strip():
            yield RawRow(
                begin, {"text": "\n".join(held) + "\n", "begins": begins, "goes_on": True}, lines=len(held), size=size
            )
            held, begin, size, begins, some = [], 0, 0, False, False
        held.append(line)
        begin, size, some = begin or number, size + len(raw), some or bool(line.strip())
    if held:
        yield RawRow(begin, {"text": "\n".join(held), "begins": begins}, lines=len(held), size=size)


def _json_list(file: IO[bytes]) -> Iterator[RawRow]:
    try:
        for line, value, size in read_list(file):
            yield RawRow(line, fault="is nested too deeply") if is_deep(value) else RawRow(line, value, size=size)
    except BrokenListError as error:
        yield RawRow(error.line, fault=str(error), breaks_off=True)
