"""Recognise the header of a table and its separator."""

import csv
import io
import re
from collections.abc import Collection, Sequence
from typing import Literal

from lora_chat.data.parsing.formats import is_known_header

TableKind = Literal["csv", "tsv", "semicolon_table", "bar_table"]
TABLE_SEPARATORS: dict[TableKind, str] = {"csv": ",", "tsv": "\t", "semicolon_table": ";", "bar_table": "|"}
"""Separator of each kind of table, in the order in which they are tried."""
_SEPARATOR_LINE = re.compile(rb"sep=(.)\r?\n", re.IGNORECASE)
"""First line with which Excel names the separator."""
_MAX_TRIED_RECORDS = 30
_MAX_HEADER_CHARACTERS, _MAX_NAME_CHARACTERS, _MAX_NAME_WORDS = 4_000, 80, 5


def find_table_kind(head: bytes, columns: Collection[str] = (), *, plain_text: bool = False) -> TableKind | None:
    """Return the kind of table that begins with these bytes, or None.

    A table has a header in a known format or with `columns`, or else rows with the cells of its header. Plain text has
    commas too, so with `plain_text` only the header counts.
    """
    text = strip_separator_line(head.lstrip()).decode("utf-8", errors="replace")
    by_header = [kind for kind, sign in TABLE_SEPARATORS.items() if _is_known(_read_records(text, sign, 1), columns)]
    if by_header:
        return by_header[0]
    if plain_text:
        return None
    widths = {kind: _count_columns(text, sign) for kind, sign in TABLE_SEPARATORS.items()}
    best = max(widths, key=lambda kind: widths[kind])
    return best if widths[best] > 1 else None


def strip_separator_line(content: bytes) -> bytes:
    """Return the beginning of a table without the line with which Excel names the separator."""
    return _SEPARATOR_LINE.sub(b"", content, count=1) if _SEPARATOR_LINE.match(content) else content


def is_separator_line(cells: Sequence[str]) -> bool:
    """Return whether a record is the line with which Excel names the separator, split at that separator."""
    return [cell.lower() for cell in cells[:1]] == ["sep="] and len(cells) == 2 and not cells[1]


def clean_header(names: Sequence[str], columns: Collection[str] = ()) -> list[str]:
    """Return the names of columns without blanks around them, unless `columns` has such a blank."""
    stripped = [name.strip() for name in names]
    return [*names] if len(set(stripped)) != len(set(names)) or not set(stripped) >= set(columns) else stripped


def _is_known(records: Sequence[Sequence[str]], columns: Collection[str]) -> bool:
    """Return whether the first record is a header in a known format or with `columns`."""
    if not records:
        return False
    names = {*records[0], *(name.strip() for name in records[0])}
    return (bool(columns) and set(columns) <= names) or is_known_header(names)


def _count_columns(text: str, separator: str) -> int:
    """Return the number of columns if the first records look like a table, otherwise 0."""
    records = _read_records(text, separator, _MAX_TRIED_RECORDS)
    if len(records) < 2 or not _is_plausible_header(records[0]):
        return 0
    return len(records[0]) if all(len(record) == len(records[0]) for record in records) else 0


def _is_plausible_header(names: Sequence[str]) -> bool:
    """Return whether cells look like names of columns, not like a sentence with commas."""
    stripped = [name.strip() for name in names]
    while stripped and not stripped[-1]:  # spreadsheets write empty columns
        stripped.pop()
    if len(stripped) < 2 or len(set(stripped)) != len(stripped) or sum(map(len, stripped)) > _MAX_HEADER_CHARACTERS:
        return False
    return all(
        (name or number == 0)
        and len(name) <= _MAX_NAME_CHARACTERS
        and len(name.split()) <= _MAX_NAME_WORDS
        and not name.endswith((".", "!", ","))
        for number, name in enumerate(stripped)
    )


def _read_records(text: str, separator: str, count: int) -> list[list[str]]:
    """Return the first records that are not blank, without the last one, which may be cut off; empty if not CSV."""
    csv.field_size_limit(1 << 25)
    records: list[list[str]] = []
    lines = io.StringIO(text, newline="")
    try:
        for record in csv.reader(lines, delimiter=separator, strict=True):
            if record and record != [""]:
                records.append(record)
            if len(records) == count:
                return records
    except csv.Error:
        return records
    return records[:-1] if len(records) > 2 and not text.endswith("\n") else records
