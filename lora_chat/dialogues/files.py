"""Files -> raw rows, each with its line: JSON lines, a JSON list, CSV, TSV, Parquet, text, any of them in gzip.

Every row is either a value or a fault with its reason.
"""

import glob
import gzip
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lora_chat.dialogues.file_kinds import MARK, TABLES, open_unpacked, recognise_kind
from lora_chat.dialogues.json_list import BrokenListError, read_list
from lora_chat.dialogues.raw_row import RawRow, first_line, is_text
from lora_chat.dialogues.tables import read_parquet, read_table
from lora_chat.errors import DataError
from lora_chat.system.strict_json import is_deep

_PIECE = 1 << 18
"""Plain text comes in pieces of about as many bytes, so that a book need not fit into memory."""


def find_files(names: str | tuple[str, ...]) -> tuple[Path, ...]:
    """Files, folders (all files right in them, hidden ones left out) and globs, in a fixed order, none twice.

    Raises DataError for a name that leads to no file.
    """
    found: dict[Path, None] = {}
    for name in (names,) if isinstance(names, str) else names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        elif glob.has_magic(name) and not path.exists():
            inside = sorted(p for p in Path(path.anchor).glob(name.removeprefix(path.anchor)) if p.is_file())
        else:
            inside = [path]
            if not path.exists():
                raise DataError(f"There is no file {path}.")
        if not inside:
            raise DataError(f"There is no file in {name}.")
        found |= dict.fromkeys(inside)
    for path in found:
        if not is_text(str(path)):
            raise DataError(f"The name of {str(path)!a} is not UTF-8 text; give the file another one.")
    return tuple(found)


def read_rows(path: Path, columns: Collection[str] = (), *, plain_text: bool = False) -> Iterator[RawRow]:
    """The rows of a file in order, lines of JSON unparsed; raises DataError if it cannot be opened or unpacked.

    A table is recognised by a header that a known format has, or that holds `columns`. With `plain_text` a file
    that is nothing else is text: one document, in pieces of which all but the last say that it goes on.
    """
    with _explained(path):
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
    with _explained(path), open_unpacked(path) as file:
        yield from _lines(file)


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
    for number, raw in enumerate(file, 1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        yield number, line.removeprefix(MARK) if number == 1 else line


def _json_lines(file: IO[bytes]) -> Iterator[RawRow]:
    for number, raw in _lines(file):
        yield RawRow(number, raw=raw)


def _text(file: IO[bytes]) -> Iterator[RawRow]:
    """Pieces that end where lines end, so that no character and no word is split; none is blank beside others."""
    held: list[str] = []
    begin = size = 0
    begins, some = True, False
    for number, raw in _lines(file):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield RawRow(number, fault=f"is not UTF-8 text (byte {error.start + 1} of the line)")
            continue
        if size >= _PIECE and some and line.strip():
            yield RawRow(begin, {"text": "\n".join(held) + "\n", "begins": begins, "goes_on": True}, lines=len(held))
            held, begin, size, begins, some = [], 0, 0, False, False
        held.append(line)
        begin, size, some = begin or number, size + len(raw), some or bool(line.strip())
    if held:
        yield RawRow(begin, {"text": "\n".join(held), "begins": begins}, lines=len(held))


def _json_list(file: IO[bytes]) -> Iterator[RawRow]:
    try:
        for line, value in read_list(file):
            yield RawRow(line, fault="is nested too deeply") if is_deep(value) else RawRow(line, value)
    except BrokenListError as error:
        yield RawRow(error.line, fault=str(error), breaks_off=True)
