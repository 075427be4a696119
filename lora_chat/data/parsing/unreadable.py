"""One message for a file of which no row can be read, in place of one for each line."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lora_chat.data.parsing.column_guess import propose_columns
from lora_chat.data.parsing.formats import ROW_FORMATS
from lora_chat.data.reading.foreign_text import explain_text
from lora_chat.data.reading.raw_row import RawRow

_MAX_EXPLAINED = 20


def explain_rows(
    first_rows: Sequence[RawRow], find_refusal: Callable[[object], str | None], *, is_forced: bool = False
) -> RawRow | None:
    """Return one fault for rows of which none is in a known format, or None if each has a separate reason.

    With `is_forced`, the recipe names the format, so that only rows without an object are explained. `find_refusal`
    returns the reason for a row that is refused whatever its format.
    """
    rows = [row for row in first_rows if not row.blank]
    parsed = [row.parse() for row in rows[:_MAX_EXPLAINED]]
    parsed = [row for row in parsed if not row.blank]
    objects = [row for row in first_rows if isinstance(row.parse().value, Mapping)] if parsed else []
    if not parsed or (is_forced and objects):
        return None
    if objects:
        row = objects[0].parse()
        value = row.value
        assert isinstance(value, Mapping)
        if refusal := find_refusal(value):
            return RawRow(row.line, value, fault=refusal, size=row.size)
        known = ", ".join(row_format.name for row_format in ROW_FORMATS if row_format.name != "columns")
        reason = f"has no `messages` and is in none of the formats {known}; {propose_columns([*map(str, value)])}"
        if len(parsed) == 1 and len(value) > 1 and all(isinstance(item, list | dict) for item in value.values()):
            kind = (
                "objects under names" if all(isinstance(item, dict) for item in value.values()) else "lists of columns"
            )
            reason = f"has {kind} in place of a list of rows. Fix: write one object with its columns for each row"
        return RawRow(row.line, value, fault=reason, size=row.size)
    if any(row.fault is None for row in parsed):
        row = next(row for row in parsed if row.fault is None)
        kind = "a list" if isinstance(row.value, list) else "a single value"
        reason = f"is {kind}, not a JSON object with `messages`. Fix: write each dialogue as an object"
        return RawRow(row.line, row.value, fault=reason)
    raw_lines = [row.raw for row in rows[:_MAX_EXPLAINED] if row.raw is not None]
    reason = explain_text(raw_lines) if len(raw_lines) == len(parsed) else ""
    return RawRow(rows[0].line, fault=reason, raw=None, ends_file=False) if reason else None


def merge_rows(fault: RawRow, rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Yield blank rows, and one fault that counts the lines of all others."""
    lines, ends_file = 0, False
    for row in rows:
        if row.blank or (row.raw is not None and not row.raw.strip()):
            yield RawRow(row.line, blank=True, lines=row.lines)
        else:
            lines += row.lines
            ends_file = ends_file or row.ends_file
    yield RawRow(
        fault.line, fault.value, fault=fault.fault, lines=lines, ends_file=ends_file, size=fault.size, is_explained=True
    )
