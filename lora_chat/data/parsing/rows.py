"""Rows -> dialogues and documents; every line accounted for, every fault with its line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_chat.config.data import DataFormat
from lora_chat.data.dialogue import Dialogue, Document, NotADialogue
from lora_chat.data.parsing.formats import FORMATS, recognise, to_document, to_messages
from lora_chat.data.parsing.messages import make_dialogue
from lora_chat.data.reading.files import find_files, read_rows
from lora_chat.data.reading.raw_row import RawRow
from lora_chat.data.reading.size_limits import LARGEST_ROW
from lora_chat.errors import DataError
from lora_chat.system.sanitize import visible

SHOWN = 20
"""So many faults are told one by one."""
_MANY = 10_000
"""So many faulty lines above those that may be left out end the reading."""
_WIDTH, _REASON = 120, 400
_LOOKED_AT = 100_000
"""Characters of a faulty row that are looked at for secrets before its beginning is shown."""
_ROWS, _BYTES, _UNRECOGNISED = 64, 1 << 18, 1000
"""A chunk ends at so many rows or bytes; of so many rows one must be in a known format."""


@dataclass(frozen=True)
class ReadingOptions:
    """How the rows of a source are read."""

    form: DataFormat | None = None
    """The format of all rows; None for what each file's first row is in."""
    columns: Mapping[str, str] = field(default_factory=dict)
    last_turn_only: bool = False

    @property
    def forced(self) -> DataFormat | None:
        """The format that is not to be recognised; columns name theirs."""
        return self.form or (("text" if "text" in self.columns else "columns") if self.columns else None)


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file, in its format."""

    path: str
    form: DataFormat | None
    rows: tuple[RawRow, ...]


@dataclass
class Tally:
    """What became of lines: lines = accepted + blank + refused (+ dropped, where they are encoded)."""

    lines: int = 0
    accepted: int = 0
    blank: int = 0
    refused: int = 0
    broken_off: int = 0
    """Files of which nothing after a fault could be read; these are never left out in silence."""
    refusals: list[str] = field(default_factory=list)
    """The first of them, each with file, line, reason and what stands there."""

    def add(self, other: "Tally") -> None:
        """Count what another has counted after this one."""
        for name in ("lines", "accepted", "blank", "refused", "broken_off"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refusals = (self.refusals + other.refusals)[:SHOWN]

    def refuse(self, path: str, line: int, reason: object, excerpt: str = "", lines: int = 1) -> None:
        """Count a fault, and keep it if it is among the first."""
        self.refused += lines
        if len(self.refusals) < SHOWN:
            what = f"\n    {visible(excerpt, _WIDTH)}" if excerpt.strip() else ""
            self.refusals.append(f"{visible(path)}:{line}: {visible(str(reason), _REASON)}{what}")


def read_chunks(paths: Sequence[Path], options: ReadingOptions) -> Iterator[Chunk]:
    """The rows of files in chunks, each file in the format that its first row is in."""
    names = [name for name in options.columns.values() if name]
    for path in paths:
        rows = read_rows(path, names, plain_text=options.forced == "text")
        held, form = _first_rows(rows, options)
        size = sum(map(_size, held))
        for row in rows:
            if len(held) >= _ROWS or size >= _BYTES:
                yield Chunk(str(path), form, tuple(held))
                held, size = [], 0
            held.append(row)
            size += _size(row)
        yield Chunk(str(path), form, tuple(held))


def _first_rows(rows: Iterator[RawRow], options: ReadingOptions) -> tuple[list[RawRow], DataFormat | None]:
    """Rows up to the first that is in a known format, and that format."""
    held: list[RawRow] = []
    if options.forced:
        return held, options.forced
    size = 0
    for row in rows:
        held.append(row)
        size += _size(row)
        form = recognise(row.parsed().value)
        if form or len(held) >= _UNRECOGNISED or size > LARGEST_ROW:
            return held, form
    return held, None


def _size(row: RawRow) -> int:
    return len(row.raw) if row.raw is not None else row.size


def read_chunk(
    chunk: Chunk, options: ReadingOptions, clean: Callable[[str], str] = lambda text: text
) -> tuple[list[Dialogue | Document], Tally]:
    """Return what the rows of a chunk say, and what became of its lines; `clean` is applied to what a fault shows."""
    found: list[Dialogue | Document] = []
    tally = Tally()
    for unread in chunk.rows:
        row = unread.parsed()
        tally.lines += row.lines
        if row.blank:
            tally.blank += row.lines
            continue
        try:
            found.append(_read_row(row, chunk, options))
            tally.accepted += row.lines
        except NotADialogue as error:
            about = RawRow(row.line, error.about) if error.about is not None else unread
            shown = len(tally.refusals) < SHOWN
            excerpt = clean(about.excerpt[:_LOOKED_AT]) if shown else ""
            tally.refuse(chunk.path, row.line, clean(str(error)) if shown else error, excerpt, row.lines)
            tally.broken_off += row.breaks_off
    return found, tally


def _read_row(row: RawRow, chunk: Chunk, options: ReadingOptions) -> Dialogue | Document:
    if row.fault:
        raise NotADialogue(row.fault)
    own = None if options.forced else recognise(row.value)
    if own and chunk.form and own != chunk.form:
        raise NotADialogue(f"is in the format {own}, where the file began with {chunk.form}")
    if chunk.form is None:
        raise _in_no_format(row.value)
    if chunk.form == "text":
        text, begins, goes_on = to_document(row.value, options.columns.get("text", "text"))
        return Document(text, row.line, chunk.path, begins, goes_on, row.lines)
    dialogue = make_dialogue(to_messages(row.value, chunk.form, options.columns), row.line)
    dialogue = replace(dialogue, path=chunk.path)
    return dialogue.last_turn_only if options.last_turn_only else dialogue


def _in_no_format(value: Any) -> NotADialogue:
    if not isinstance(value, Mapping):
        return NotADialogue("is not a JSON object with `messages`")
    keys = ", ".join(ascii(key) for key in list(value)[:8]) or "none"
    known = ", ".join(name for name in FORMATS if name != "columns")
    return NotADialogue(f"has no `messages` and is in none of the formats {known} (its keys: {keys})")


def read_dialogues(
    names: str | Path | tuple[str, ...], skip_bad: int = 0, options: ReadingOptions | None = None
) -> tuple[list[Dialogue], Tally]:
    """Read files, folders and globs into memory, strictly.

    Raises DataError for a missing or empty file, or when more than `skip_bad` lines are faulty.
    """
    paths = find_files(str(names) if isinstance(names, Path) else names)
    options = options or ReadingOptions()
    dialogues: list[Dialogue] = []
    tally = Tally()
    for chunk in read_chunks(paths, options):
        found, counted = read_chunk(chunk, options)
        dialogues += [one for one in found if isinstance(one, Dialogue)]
        tally.add(counted)
    check_tally(shown_paths(paths), tally, skip_bad)
    return dialogues, tally


def shown_paths(paths: Sequence[Path]) -> str:
    """A file, or the first of several."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def check_going_on(where: str, tally: Tally, skip_bad: int) -> None:
    """Raise DataError where so many lines are faulty that reading the rest would tell nothing new."""
    if tally.refused > skip_bad + _MANY:
        check_tally(where, tally, skip_bad, least="At least ")


def check_tally(where: str, tally: Tally, skip_bad: int, least: str = "") -> None:
    """Raise DataError for more than `skip_bad` faulty lines, or if nothing was accepted."""
    where = visible(where)
    if tally.refused > skip_bad or tally.broken_off:
        allowed = f" (data.skip_bad allows {skip_bad})" if skip_bad else ""
        more = tally.refused - len(tally.refusals)
        lines = [
            f"{least}{tally.refused} line{'s' if tally.refused > 1 else ''} of {where} cannot be used{allowed}:",
            *tally.refusals,
            *([f"... and {more} more"] if more > 0 else []),
            _advice(tally),
        ]
        raise DataError("\n".join(lines))
    if not tally.accepted:
        raise DataError("\n".join([f"{where} holds no dialogue ({_no_dialogue(tally)}).", *tally.refusals]))


def _advice(tally: Tally) -> str:
    if tally.broken_off:
        return "Mend the file: nobody knows how much of it is lost, so data.skip_bad does not help here."
    return "Mend them, or leave up to N of them out with --set data.skip_bad=N."


def _no_dialogue(tally: Tally) -> str:
    refused = f", {tally.refused} refused" if tally.refused else ""
    return f"{tally.lines} lines, {tally.blank} of them blank{refused}"
