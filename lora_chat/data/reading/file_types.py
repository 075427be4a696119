"""Detect the kind of a file from its first bytes, never from its name."""

import codecs
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import IO, Literal

from lora_chat.data.parsing.formats import detect_format
from lora_chat.data.reading.compression import find_compression, open_decompressed
from lora_chat.data.reading.foreign_files import describe_foreign_file
from lora_chat.data.reading.size_limits import MAX_ROW_BYTES
from lora_chat.data.reading.streamed_file import DataFile
from lora_chat.data.reading.table_headers import TABLE_SEPARATORS, TableKind, find_table_kind
from lora_chat.errors import DataError
from lora_chat.system.strict_json import STRICT_DECODER, parse_strict_json

FileKind = Literal["json_lines", "json_list", "json_objects", "parquet", "arrow", "arrow_stream", "text"] | TableKind

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Byte order mark that some programs write before UTF-8."""
_COLUMN_FILES: dict[bytes, FileKind] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow_stream",
}
"""First bytes of files that Arrow reads, which are not decompressed."""
_HEAD_BYTES = 1 << 16
_END_MARGIN_CHARACTERS, _MAX_TRIED_LINES = 64, 20

__all__ = ["BYTE_ORDER_MARK", "TABLE_SEPARATORS", "FileKind", "detect_file_kind", "is_row"]


def detect_file_kind(path: DataFile, columns: Collection[str] = (), *, plain_text: bool = False) -> FileKind:
    """Return the kind of a file; with `plain_text`, a file of no other kind is text.

    A table is recognised by its header and rows. Raises DataError for a file of a kind that is never read.
    """
    with path.open("rb") as file:
        raw_head = file.read(16)
    kind = next((kind for magic, kind in _COLUMN_FILES.items() if raw_head.startswith(magic)), None)
    if kind:
        return kind
    with open_decompressed(path) as stream:
        head = stream.read(_HEAD_BYTES)
        _refuse_foreign(path, head, is_compressed=find_compression(raw_head) is not None)
        head = head.removeprefix(BYTE_ORDER_MARK)
        first, *rest = head.lstrip().split(b"\n")
        if first.startswith(b"["):
            return "json_list" if _starts_json_list(first.strip(), rest) else "json_lines"
        if first.startswith(b"{"):
            return _detect_objects(head.lstrip(), stream, columns)
    return find_table_kind(head, columns, plain_text=plain_text) or ("text" if plain_text else "json_lines")


def is_row(value: Mapping[str, object], columns: Collection[str] = ()) -> bool:
    """Return whether an object is a row in a known format, or has the columns of the recipe."""
    return detect_format(value) is not None or (bool(columns) and set(columns) <= value.keys())


def _refuse_foreign(path: DataFile, head: bytes, *, is_compressed: bool) -> None:
    """Raise DataError for a file of a kind that is never read, with the fix."""
    description = describe_foreign_file(head, is_compressed=is_compressed)
    if description:
        raise DataError(f"{path} is {description}.")


def _starts_json_list(first: bytes, rest: Sequence[bytes]) -> bool:
    """Return whether a first line that begins with a bracket begins one list for the whole file."""
    following = next((line for line in rest if line.strip()), b"")
    if first == b"[" or not following:
        return True
    return not _is_json(first) and not _is_json(following)


def _detect_objects(head: bytes, stream: IO[bytes], columns: Collection[str]) -> FileKind:
    """Return whether a file that begins with an object has one on each line, or objects over several lines."""
    first, line_feed, rest = head.partition(b"\n")
    if not line_feed and len(head) >= _HEAD_BYTES - len(BYTE_ORDER_MARK) - 1:
        first += stream.readline(MAX_ROW_BYTES + 1)
        if len(first) > MAX_ROW_BYTES:
            return "json_objects"
        rest = stream.read(_HEAD_BYTES)
        if rest.strip():
            return "json_lines"
    value = _parse_object(first)
    if value is not None:
        has_list = any(isinstance(item, list) and item and isinstance(item[0], dict) for item in value.values())
        is_alone = not rest.strip() and not stream.read(1)
        return "json_objects" if is_alone and has_list and not _has_messages(value, columns) else "json_lines"
    return "json_objects" if _spans_lines(head, rest, is_whole=not stream.read(1)) else "json_lines"


def _has_messages(value: Mapping[str, object], columns: Collection[str]) -> bool:
    """Return whether the only object of a file is a row, not a frame around rows."""
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    return is_row(value, columns) and not any(is_row(items[0], columns) for items in lists)


def _spans_lines(head: bytes, rest: bytes, *, is_whole: bool) -> bool:
    """Return whether the object at the beginning of a file continues after its first line, or others follow it there.

    A file with a line that is an object is JSON lines, whatever its first line is.
    """
    lines = [line for line in rest.split(b"\n")[:_MAX_TRIED_LINES] if line.strip()]
    if any(_parse_object(line) is not None for line in lines):
        return False
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the end may be half a character
        _, end = STRICT_DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos > len(text) - _END_MARGIN_CHARACTERS or error.msg.startswith("Unterminated")
        begins_block = re.match(rb"\{\s*\n\s*\"[^\"\n]*\"\s*:|\{\s*\"[^\"\n]*\"\s*:\s*\[\s*\n\s*\{", head)
        return bool(lines) and ((is_cut and not is_whole) or begins_block is not None)
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end] or (not lines and text[end:].lstrip(" \t,").startswith("{"))


def _is_json(line: bytes) -> bool:
    """Return whether a line is strict JSON."""
    try:
        parse_strict_json(line.decode("utf-8"))
    except ValueError:
        return False
    return True


def _parse_object(line: bytes) -> dict[str, object] | None:
    """Return the object on a line of strict JSON, otherwise None."""
    try:
        value = parse_strict_json(line.decode("utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
