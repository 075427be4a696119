"""Files -> raw rows, each with its line: JSON lines, a JSON list, CSV, TSV, Parquet, text, any of them in gzip.

What a file is, its first bytes say, never its name. Every row is either a value or a fault with its reason.
"""

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from lora_chat.dialogues.formats import is_known_header
from lora_chat.dialogues.json_list import BrokenListError, read_list
from lora_chat.dialogues.strict_json import is_deep, parse_json
from lora_chat.errors import DataError

Kind = Literal["json_lines", "json_list", "csv", "tsv", "parquet", "text"]

_GZIP, _PARQUET, _MARK = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_TABLES: dict[Kind, str] = {"csv": ",", "tsv": "\t"}
_LOOKED_AT = 1 << 16
_LONGEST_CELL = 1 << 27
_PIECE = 1 << 18
"""Plain text comes in pieces of about as many bytes, so that a book need not fit into memory."""


@dataclass(frozen=True)
class RawRow:
    """One row of a file, or one blank line of it."""

    line: int
    """Where it begins, counted from 1; in Parquet the row's number."""
    value: Any = None
    fault: str | None = None
    """Why it cannot be read."""
    blank: bool = False
    raw: bytes | None = None
    """A line of JSON that is not parsed yet."""
    lines: int = 1
    """How many lines it covers."""

    def parsed(self) -> "RawRow":
        """The same with its value, or with why it has none."""
        if self.raw is None:
            return self
        try:
            text = self.raw.decode("utf-8")
            if not text.strip():
                return RawRow(self.line, blank=True)
            return RawRow(self.line, parse_json(text))
        except UnicodeDecodeError as error:
            return RawRow(self.line, fault=f"is not UTF-8 text (byte {error.start + 1} of the line)")
        except ValueError as error:
            return RawRow(self.line, fault=str(error))

    @property
    def excerpt(self) -> str:
        """What stands there, as far as it can be shown."""
        if self.raw is not None:
            return self.raw.decode("utf-8", errors="replace")
        try:
            return "" if self.value is None else json.dumps(self.value, ensure_ascii=False, default=str)
        except (TypeError, ValueError, RecursionError):
            return ""


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
        if not _is_text(str(path)):
            raise DataError(f"The name of {str(path)!a} is not UTF-8 text; give the file another one.")
    return tuple(found)


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_rows(path: Path, columns: Collection[str] = (), *, plain_text: bool = False) -> Iterator[RawRow]:
    """The rows of a file in order, lines of JSON unparsed; raises DataError if it cannot be opened or unpacked.

    A table is recognised by a header that a known format has, or that holds `columns`. With `plain_text` a file
    that is nothing else is text: one document, in pieces of which all but the last say that it goes on.
    """
    with _explained(path):
        kind = recognise_kind(path, columns, plain_text=plain_text)
        if kind == "parquet":
            yield from _parquet(path)
            return
        with _open(path) as file:
            if kind == "json_lines":
                yield from _json_lines(file)
            elif kind == "json_list":
                yield from _json_list(file)
            elif kind == "text":
                yield from _text(file)
            else:
                yield from _table(file, _TABLES[kind])


def recognise_kind(path: Path, columns: Collection[str] = (), *, plain_text: bool = False) -> Kind:
    """What kind of file it is, by its first bytes; what looks like nothing else is text if that is expected."""
    with path.open("rb") as file:
        if file.read(4) == _PARQUET:
            return "parquet"
    with _open(path) as stream:
        head = stream.read(_LOOKED_AT).removeprefix(_MARK)
    first, *rest = head.lstrip().split(b"\n")
    if first.startswith(b"["):
        return "json_list" if _begins_a_list(first.strip(), rest) else "json_lines"
    if not first.startswith(b"{"):
        for kind, separator in _TABLES.items():
            if _is_header(first, separator, columns):
                return kind
        return "text" if plain_text else "json_lines"
    return "json_lines"


def _begins_a_list(first: bytes, rest: Sequence[bytes]) -> bool:
    """Whether a line that opens with a bracket begins one list for the whole file."""
    following = next((line for line in rest if line.strip()), b"")
    if first == b"[" or not following:
        return True
    return not _is_json(first) and not _is_json(following)


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line.decode("utf-8"))
    except ValueError:
        return False
    return True


def _is_header(line: bytes, separator: str, columns: Collection[str]) -> bool:
    try:
        names = next(csv.reader([line.decode("utf-8").rstrip("\r")], delimiter=separator, strict=True), [])
    except (csv.Error, UnicodeDecodeError):
        return False
    return (bool(columns) and set(columns) <= set(names)) or is_known_header(names)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file's lines with their numbers, split at line feeds only; raises DataError if it cannot be read."""
    with _explained(path), _open(path) as file:
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
        raise DataError(f"Cannot read {path}: {_first_line(error.strerror or error)}") from error


def _first_line(reason: object) -> str:
    """Of what a library says, as a sentence."""
    return f"{(str(reason).strip().splitlines() or ['it is damaged'])[0].rstrip('.')}."


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, raw in enumerate(file, 1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        yield number, line.removeprefix(_MARK) if number == 1 else line


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
        yield RawRow(error.line, fault=str(error))


def _table(file: IO[bytes], separator: str) -> Iterator[RawRow]:
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
        yield RawRow(line, fault=f"is not valid CSV: {error}; nothing after it can be read")


def _table_row(line: int, cells: dict[str, str]) -> RawRow:
    if not _is_text("".join(cells.values())):
        return RawRow(line, fault="is not UTF-8 text")
    try:
        return RawRow(line, {key: _cell(key, cell) if cell else None for key, cell in cells.items()})
    except ValueError as error:
        return RawRow(line, fault=str(error))


def _cell(key: str, cell: str) -> Any:
    """Lists of messages stand in tables as JSON text."""
    return parse_json(cell) if key in ("messages", "conversations", "conversation", "history") else cell


def _parquet(path: Path) -> Iterator[RawRow]:
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
        raise DataError(f"Cannot read {path}: {_first_line(error)}") from error


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
