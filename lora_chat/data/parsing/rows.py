"""Parse rows of files as dialogues or documents, and count every line and every fault."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from lora_chat.config.columns import list_column_names
from lora_chat.config.data import DataFormat, TurnOrder
from lora_chat.data.dialogue import Dialogue, Document, InvalidDialogueError
from lora_chat.data.parsing.columns import list_used_columns
from lora_chat.data.parsing.copies import check_copies
from lora_chat.data.parsing.formats import ROW_FORMATS, detect_format, find_used_keys, to_document, to_messages
from lora_chat.data.parsing.keys import ROW, check_unused, format_keys
from lora_chat.data.parsing.line_counts import MAX_SHOWN_FAULTS, LineCounts, check_line_counts, summarize_paths
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.preference import UnwantedRowError
from lora_chat.data.parsing.prepare_row import RowPreparation
from lora_chat.data.parsing.read_position import ReadPosition
from lora_chat.data.parsing.rendered_chats import note_rendered_messages, note_rendered_text
from lora_chat.data.parsing.row_limit import RowLimiter
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.data.parsing.system_message import set_system_message
from lora_chat.data.parsing.unreadable import explain_rows, merge_rows
from lora_chat.data.reading.files import read_rows
from lora_chat.data.reading.find_files import find_files
from lora_chat.data.reading.raw_row import RawRow
from lora_chat.data.reading.size_limits import MAX_ROW_BYTES
from lora_chat.data.reading.streamed_file import DataFile
from lora_chat.errors import DataError
from lora_chat.system.sanitize import sanitize_line

_MAX_SCANNED_CHARACTERS = 100_000
"""Characters of a faulty row that are searched for secrets before its beginning is shown."""
_CHUNK_ROWS, _CHUNK_BYTES, _MAX_UNRECOGNISED_ROWS = 64, 1 << 18, 1000
"""Most rows and bytes of a chunk, and the number of first rows of which one must be in a known format."""


@dataclass(frozen=True)
class ReadingOptions:
    """Options for reading the rows of a source."""

    data_format: DataFormat | None = None
    """Format of all rows; None to detect it from the first row of each file."""
    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    last_turn_only: bool = False
    loss_on_prompts: bool = False
    turn_order: TurnOrder = "refuse"
    system: str | None = None
    """System message for dialogues that have none."""
    replaces_system: bool = False
    """Whether it replaces other system messages too."""
    limit: int | None = None
    """Number of rows that are read of all files together; None for all."""
    drop_unwanted: bool = False
    """Whether rows marked as unwanted, and rejected replies, are left out instead of refused."""
    ignored_keys: tuple[str, ...] = ()
    """Keys of rows, messages and parts that are left out although they carry meaning."""

    @property
    def preparation(self) -> RowPreparation:
        """Return the changes of a row before its format is known."""
        return RowPreparation(list_used_columns(self.columns), self.drop_unwanted, self.ignored_keys)

    @property
    def forced_format(self) -> DataFormat | None:
        """Return the format that the recipe sets, by name or by columns; None to detect it."""
        if self.data_format or not self.columns:
            return self.data_format
        return "text" if "text" in self.columns else "columns"


@dataclass(frozen=True)
class RowChunk:
    """Consecutive rows of one file, with its format."""

    path: str
    data_format: DataFormat | None
    rows: tuple[RawRow, ...]
    end: ReadPosition | None = None
    """Position after these rows; None if reading cannot continue there."""


def read_chunks(
    paths: Sequence[DataFile], options: ReadingOptions, begin: ReadPosition | None = None
) -> Iterator[RowChunk]:
    """Yield the rows of files in chunks, up to `limit` rows; the first row decides the format of its file.

    From the end of an earlier chunk on, the same chunks follow as after it.
    """
    names = [name for columns in options.columns.values() for name in list_column_names(columns)]
    position = begin or ReadPosition(left=options.limit)
    if position.is_end:
        return
    limiter = RowLimiter(position.left)
    for number, path in enumerate(paths[position.files :], position.files):
        if number > position.files:
            position = ReadPosition(number, left=position.left)
        rows = limiter.take(read_rows(path, names, plain_text=options.forced_format == "text", start=position.start))
        buffer: list[RawRow]
        if position.start.rows:
            buffer, data_format, is_readable = [], position.data_format, True
        else:
            buffer, data_format, is_readable = _read_until_recognised(rows, options)
        fault = (
            None
            if is_readable
            else explain_rows(buffer, options.preparation.find_refusal, is_forced=data_format is not None)
        )
        if fault:
            rows, buffer = merge_rows(fault, chain(buffer, rows)), []
        if options.system is not None and data_format == "text":
            raise DataError(
                f"{sanitize_line(str(path))} is plain text, which has no system message. Fix: remove data.system, or "
                "set `system` only at the sources with dialogues."
            )
        size = sum(map(_row_bytes, buffer))
        for row in rows:
            if len(buffer) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
                position = position.after(buffer, data_format)
                yield RowChunk(str(path), data_format, tuple(buffer), None if fault else position)
                buffer, size = [], 0
            buffer.append(row)
            size += _row_bytes(row)
        position = position.after(buffer, data_format)
        yield RowChunk(str(path), data_format, tuple(buffer), None if fault else position)
        if limiter.is_full:
            return


def _read_until_recognised(
    rows: Iterator[RawRow], options: ReadingOptions
) -> tuple[list[RawRow], DataFormat | None, bool]:
    """Return the rows up to the first one that can be read, the format, and whether there is such a row."""
    buffer: list[RawRow] = []
    data_format = options.forced_format
    if data_format == "text":
        return buffer, data_format, True
    size = 0
    for row in rows:
        buffer.append(row)
        size += _row_bytes(row)
        value = row.parse().value
        row_format = data_format or detect_format(options.preparation.preview(value))
        if row_format and isinstance(value, Mapping):
            return buffer, row_format, True
        if len(buffer) >= _MAX_UNRECOGNISED_ROWS or size > MAX_ROW_BYTES:
            break
    return buffer, data_format, False


def _row_bytes(row: RawRow) -> int:
    """Return the approximate bytes of a row."""
    return len(row.raw) if row.raw is not None else row.size


def parse_chunk(
    chunk: RowChunk, options: ReadingOptions, clean: Callable[[str], str] = lambda text: text
) -> tuple[list[Dialogue | Document], LineCounts]:
    """Return the dialogues or documents of a chunk, and its line counts; `clean` redacts texts of faults."""
    parsed: list[Dialogue | Document] = []
    counts = LineCounts()
    for raw_row in chunk.rows:
        row = raw_row.parse()
        counts.lines += row.lines
        if row.blank:
            counts.blank += row.lines
            continue
        notes = RowNotes(dict.fromkeys(raw_row.notes, 1), ignored_keys=frozenset(options.ignored_keys))
        try:
            parsed.append(_parse_row(row, chunk, options, notes))
            counts.accepted += row.lines
            counts.add_notes(notes)
        except UnwantedRowError:
            counts.unwanted += row.lines
        except InvalidDialogueError as error:
            faulty = RawRow(row.line, error.faulty_entry) if error.faulty_entry is not None else raw_row
            is_shown = len(counts.refusals) < MAX_SHOWN_FAULTS
            excerpt = clean(faulty.excerpt[:_MAX_SCANNED_CHARACTERS]) if is_shown else ""
            location = f" (element {row.line} of the list)" if raw_row.is_element else ""
            reason = clean(f"{error}{location}") if is_shown else error
            counts.refuse(chunk.path, row.line, reason, excerpt, row.lines)
            counts.explained += row.lines if raw_row.is_explained else 0
            counts.broken_off += row.ends_file
    return parsed, counts


def _parse_row(row: RawRow, chunk: RowChunk, options: ReadingOptions, notes: RowNotes) -> Dialogue | Document:
    """Parse a row and note what was done to it; raises InvalidDialogueError with the reason."""
    if row.fault:
        raise InvalidDialogueError(row.fault)
    value = options.preparation.apply(row.value, chunk.data_format, notes)
    row_format = None if options.forced_format else detect_format(value)
    if row_format and chunk.data_format and row_format != chunk.data_format:
        raise InvalidDialogueError(f"is in the format {row_format}, but the file began with {chunk.data_format}")
    if chunk.data_format is None or not isinstance(value, Mapping):
        raise _unknown_format_error(value)
    used = find_used_keys(value, chunk.data_format, options.columns)
    check_unused(value, used, ROW, notes, has_classes=chunk.data_format in ("columns", "text"))
    if chunk.data_format == "text":
        text, is_first_piece, has_next_piece = to_document(value, options.columns.get("text", "text"))
        note_rendered_text(text, notes)
        return Document(text, row.line, chunk.path, is_first_piece, has_next_piece, row.lines)
    converted = to_messages(value, chunk.data_format, options.columns, notes)
    dialogue = parse_dialogue(converted, row.line, notes, options.turn_order)
    if not options.forced_format:
        check_copies(value, chunk.data_format, dialogue)
    dialogue = replace(dialogue, path=chunk.path)
    if options.system is not None:
        dialogue = set_system_message(dialogue, options.system, notes, replaces=options.replaces_system)
    note_rendered_messages(dialogue, notes)
    dialogue = dialogue.last_turn_only if options.last_turn_only else dialogue
    decides = converted.get("turns") == "last" or converted.get("loss") in ("replies", "last")
    return dialogue.with_loss_on_prompts if options.loss_on_prompts and not decides else dialogue


def _unknown_format_error(value: object) -> InvalidDialogueError:
    """Return the error for a row in no known format."""
    if not isinstance(value, Mapping):
        return InvalidDialogueError("is not a JSON object with `messages`")
    known = ", ".join(row_format.name for row_format in ROW_FORMATS if row_format.name != "columns")
    return InvalidDialogueError(
        f"has no `messages` and is in none of the formats {known} (its keys: {format_keys(value)})"
    )


def read_dialogues(
    names: str | Path | tuple[str, ...], skip_bad: int = 0, options: ReadingOptions | None = None
) -> tuple[list[Dialogue], LineCounts]:
    """Read files, folders and globs into memory, strictly.

    Raises DataError for a missing or empty file, or when more than `skip_bad` lines are faulty.
    """
    paths = find_files(str(names) if isinstance(names, Path) else names)
    options = options or ReadingOptions()
    dialogues: list[Dialogue] = []
    counts = LineCounts()
    for chunk in read_chunks(paths, options):
        parsed, chunk_counts = parse_chunk(chunk, options)
        dialogues += [dialogue for dialogue in parsed if isinstance(dialogue, Dialogue)]
        counts.add(chunk_counts)
    check_line_counts(summarize_paths(paths), counts, skip_bad)
    return dialogues, counts
