"""Detect the kind of a file from its first bytes, never from its name."""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Literal

from lora_chat.data.parsing.formats import is_known_header
from lora_chat.data.reading.size_limits import open_gzip
from lora_chat.system.strict_json import parse_strict_json

FileKind = Literal["json_lines", "json_list", "csv", "tsv", "parquet", "text"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Byte order mark that some programs write before UTF-8."""
TABLE_SEPARATORS: dict[FileKind, str] = {"csv": ",", "tsv": "\t"}
_GZIP_MAGIC, _PARQUET_MAGIC = b"\x1f\x8b", b"PAR1"
_HEAD_BYTES = 1 << 16


def detect_file_kind(path: Path, columns: Collection[str] = (), *, plain_text: bool = False) -> FileKind:
    """Return the kind of a file; with `plain_text`, a file of no other kind is text.

    A table is recognised by a header that has `columns` or the columns of a known format.
    """
    with path.open("rb") as file:
        if file.read(4) == _PARQUET_MAGIC:
            return "parquet"
    with open_decompressed(path) as stream:
        head = stream.read(_HEAD_BYTES).removeprefix(BYTE_ORDER_MARK)
    first, *rest = head.lstrip().split(b"\n")
    if first.startswith(b"["):
        return "json_list" if _starts_json_list(first.strip(), rest) else "json_lines"
    if not first.startswith(b"{"):
        for kind, separator in TABLE_SEPARATORS.items():
            if _is_header(first, separator, columns):
                return kind
        return "text" if plain_text else "json_lines"
    return "json_lines"


def _starts_json_list(first: bytes, rest: Sequence[bytes]) -> bool:
    """Return whether a first line that begins with a bracket begins one list for the whole file."""
    following = next((line for line in rest if line.strip()), b"")
    if first == b"[" or not following:
        return True
    return not _is_json(first) and not _is_json(following)


def _is_json(line: bytes) -> bool:
    """Return whether a line is strict JSON."""
    try:
        parse_strict_json(line.decode("utf-8"))
    except ValueError:
        return False
    return True


def _is_header(line: bytes, separator: str, columns: Collection[str]) -> bool:
    """Return whether a line is the header of a table in a known format or with `columns`."""
    try:
        names = next(csv.reader([line.decode("utf-8").rstrip("\r")], delimiter=separator, strict=True), [])
    except (csv.Error, UnicodeDecodeError):
        return False
    return (bool(columns) and set(columns) <= set(names)) or is_known_header(names)


def open_decompressed(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed if it is gzip."""
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return open_gzip(path) if compressed else path.open("rb")
