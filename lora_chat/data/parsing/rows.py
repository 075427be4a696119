"""Rows -> dialogues and documents; every line accounted for, every fault with its line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_chat.config.data import DataFormat
from lora_chat.data.dialogue import Dialogue, Document, InvalidDialogueError
from lora_chat.data.parsing.formats import ROW_FORMATS, detect_format, to_document, to_messages
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.reading.files import find_files, read_rows
from lora_chat.data.reading.raw_row import RawRow
from lora_chat.data.reading.size_limits import MAX_ROW_BYTES
from lora_chat.errors import DataError
from lora_chat.system.sanitize import sanitize_line

MAX_SHOWN_FAULTS = 20
"""So many faults are told one by one."""
_MAX_EXCESS_FAULTS = 10_000
"""So many faulty lines above those that may be left out end the reading."""
_MAX_EXCERPT_CHARACTERS, _MAX_REASON_CHARACTERS = 120, 400
_MAX_SCANNED_CHARACTERS = 100_000
"""Characters of a faulty row that are looked at for secrets before its beginning is shown."""
_CHUNK_ROWS, _CHUNK_BYTES, _MAX_UNRECOGNISED_ROWS = 64, 1 << 18, 1000
"""A chunk ends at so many rows or bytes; of so many rows one must be in a known format."""


@dataclass(frozen=True)
class ReadingOptions:
    """How the rows of a source are read."""

    data_format: DataFormat | None = None
    """The format of all rows; None for what each file's first row is in."""
    columns: Mapping[str, str] = field(default_factory=dict)
    last_turn_only: bool = False

    @property
    def forced_format(self) -> DataFormat | None:
        """The format that is not to be recognised; columns name theirs."""
        return self.data_format or (("text" if "text" in self.columns else "columns") if self.columns else None)


@dataclass(frozen=True)
class RowChunk:
    """Some rows of one file, in its format."""

    path: str
    data_format: DataFormat | None
    rows: tuple[RawRow, ...]


@dataclass
class LineCounts:
    """What became of lines: lines = accepted + blank + refused (+ dropped, where they are encoded)."""

    lines: int = 0
    accepted: int = 0
    blank: int = 0
    refused: int = 0
    broken_off: int = 0
    """Files of which nothing after a fault could be read; these are never left out in silence."""
    refusals: list[str] = field(default_factory=list)
    """The first of them, each with file, line, reason and what stands there."""

    def add(self, other: "LineCounts") -> None:
        """Count what another has counted after this one."""
        for name in ("lines", "accepted", "blank", "refused", "broken_off"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refusals = (self.refusals + other.refusals)[:MAX_SHOWN_FAULTS]

    def refuse(self, path: str, line: int, reason: object, excerpt: str = "", lines: int = 1) -> None:
        """Count a fault, and keep it if it is among the first."""
        self.refused += lines
        if len(self.refusals) < MAX_SHOWN_FAULTS:
            what = f"\n    {sanitize_line(excerpt, _MAX_EXCERPT_CHARACTERS)}" if excerpt.strip() else ""
            self.refusals.append(
                f"{sanitize_line(path)}:{line}: {sanitize_line(str(reason), _MAX_REASON_CHARACTERS)}{what}"
            )


def read_chunks(paths: Sequence[Path], options: ReadingOptions) -> Iterator[RowChunk]:
    """The rows of files in chunks, each file in the format that its first row is in."""
    names = [name for name in options.columns.values() if name]
    for path in paths:
        rows = read_rows(path, names, plain_text=options.forced_format == "text")
        buffer, form = _read_until_recognised(rows, options)
        size = sum(map(_row_bytes, buffer))
        for row in rows:
            if len(buffer) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
                yield RowChunk(str(path), form, tuple(buffer))
                buffer, size = [], 0
            buffer.append(row)
            size += _row_bytes(row)
        yield RowChunk(str(path), form, tuple(buffer))


def _read_until_recognised(rows: Iterator[RawRow], options: ReadingOptions) -> tuple[list[RawRow], DataFormat | None]:
    """Rows up to the first that is in a known format, and that format."""
    buffer: list[RawRow] = []
    if options.forced_format:
        return buffer, options.forced_format
    size = 0
    for row in rows:
        buffer.append(row)
        size += _row_bytes(row)
        form = detect_format(row.parse().value)
        if form or len(buffer) >= _MAX_UNRECOGNISED_ROWS or size > MAX_ROW_BYTES:
            return buffer, form
    return buffer, None


def _row_bytes(row: RawRow) -> int:
    return len(row.raw) if row.raw is not None else row.size


def parse_chunk(
    chunk: RowChunk, options: ReadingOptions, clean: Callable[[str], str] = lambda text: text
) -> tuple[list[Dialogue | Document], LineCounts]:
    """Return what the rows of a chunk say, and what became of its lines; `clean` is applied to what a fault shows."""
    found: list[Dialogue | Document] = []
    tally = LineCounts()
    for raw_row in chunk.rows:
        row = raw_row.parse()
        tally.lines += row.lines
        if row.blank:
            tally.blank += row.lines
            continue
        try:
            found.append(_parse_row(row, chunk, options))
            tally.accepted += row.lines
        except InvalidDialogueError as error:
            about = RawRow(row.line, error.faulty_entry) if error.faulty_entry is not None else raw_row
            shown = len(tally.refusals) < MAX_SHOWN_FAULTS
            excerpt = clean(about.excerpt[:_MAX_SCANNED_CHARACTERS]) if shown else ""
            tally.refuse(chunk.path, row.line, clean(str(error)) if shown else error, excerpt, row.lines)
            tally.broken_off += row.ends_file
    return found, tally


def _parse_row(row: RawRow, chunk: RowChunk, options: ReadingOptions) -> Dialogue | Document:
    if row.fault:
        raise InvalidDialogueError(row.fault)
    row_format = None if options.forced_format else detect_format(row.value)
    if row_format and chunk.data_format and row_format != chunk.data_format:
        raise InvalidDialogueError(f"is in the format {row_format}, where the file began with {chunk.data_format}")
    if chunk.data_format is None:
        raise _unknown_format_error(row.value)
    if chunk.data_format == "text":
        text, begins, goes_on = to_document(row.value, options.columns.get("text", "text"))
        return Document(text, row.line, chunk.path, begins, goes_on, row.lines)
    dialogue = parse_dialogue(to_messages(row.value, chunk.data_format, options.columns), row.line)
    dialogue = replace(dialogue, path=chunk.path)
    return dialogue.last_turn_only if options.last_turn_only else dialogue


def _unknown_format_error(value: Any) -> InvalidDialogueError:
    if not isinstance(value, Mapping):
        return InvalidDialogueError("is not a JSON object with `messages`")
    keys = ", ".join(ascii(key) for key in list(value)[:8]) or "none"
    known = ", ".join(row_format.name for row_format in ROW_FORMATS if row_format.name != "columns")
    return InvalidDialogueError(f"has no `messages` and is in none of the formats {known} (its keys: {keys})")


def read_dialogues(
    names: str | Path | tuple[str, ...], skip_bad: int = 0, options: ReadingOptions | None = None
) -> tuple[list[Dialogue], LineCounts]:
    """Read files, folders and globs into memory, strictly.

    Raises DataError for a missing or empty file, or when more than `skip_bad` lines are faulty.
    """
    paths = find_files(str(names) if isinstance(names, Path) else names)
    options = options or ReadingOptions()
    dialogues: list[Dialogue] = []
    tally = LineCounts()
    for chunk in read_chunks(paths, options):
        found, counted = parse_chunk(chunk, options)
        dialogues += [one for one in found if isinstance(one, Dialogue)]
        tally.add(counted)
    check_line_counts(summarize_paths(paths), tally, skip_bad)
    return dialogues, tally


def summarize_paths(paths: Sequence[Path]) -> str:
    """A file, or the first of several."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def check_fault_limit(where: str, tally: LineCounts, skip_bad: int) -> None:
    """Raise DataError where so many lines are faulty that reading the rest would tell nothing new."""
    if tally.refused > skip_bad + _MAX_EXCESS_FAULTS:
        check_line_counts(where, tally, skip_bad, prefix="At least ")


def check_line_counts(where: str, tally: LineCounts, skip_bad: int, prefix: str = "") -> None:
    """Raise DataError for more than `skip_bad` faulty lines, or if nothing was accepted."""
    where = sanitize_line(where)
    if tally.refused > skip_bad or tally.broken_off:
        allowed = f" (data.skip_bad allows {skip_bad})" if skip_bad else ""
        more = tally.refused - len(tally.refusals)
        lines = [
            f"{prefix}{tally.refused} line{'s' if tally.refused > 1 else ''} of {where} cannot be used{allowed}:",
            *tally.refusals,
            *([f"... and {more} more"] if more > 0 else []),
            _fix_hint(tally),
        ]
        raise DataError("\n".join(lines))
    if not tally.accepted:
        raise DataError("\n".join([f"{where} holds no dialogue ({_format_counts(tally)}).", *tally.refusals]))


def _fix_hint(tally: LineCounts) -> str:
    if tally.broken_off:
        return "Mend the file: nobody knows how much of it is lost, so data.skip_bad does not help here."
    return "Mend them, or leave up to N of them out with --set data.skip_bad=N."


def _format_counts(tally: LineCounts) -> str:
    refused = f", {tally.refused} refused" if tally.refused else ""
    return f"{tally.lines} lines, {tally.blank} of them blank{refused}"
