"""Count the lines of files by what became of them, and report faults."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_chat.data.parsing.row_notes import RowNotes, add_counts
from lora_chat.errors import DataError
from lora_chat.system.sanitize import sanitize_line

MAX_SHOWN_FAULTS = 20
"""Number of faults that a message lists."""
_MAX_EXCESS_FAULTS = 10_000
"""Faulty lines beyond `data.skip_bad` after which reading stops."""
_MAX_EXCERPT_CHARACTERS, _MAX_REASON_CHARACTERS = 120, 600
_MAX_SHOWN_REPEATS = 3
"""Number of lines with the same reason that a message shows."""


@dataclass
class LineCounts:
    """Counts of lines, with lines = accepted + blank + refused + unwanted (+ dropped, in a `Ledger`)."""

    lines: int = 0
    accepted: int = 0
    blank: int = 0
    refused: int = 0
    unwanted: int = 0
    """Lines that were left out because their reply is marked as unwanted."""
    broken_off: int = 0
    """Number of files that are unreadable after a fault; these are never skipped silently."""
    explained: int = 0
    """Number of refused lines in files of which no row can be read, which have one refusal for each file."""
    refusals: list[str] = field(default_factory=list)
    """First refused lines, each with file, line, reason and excerpt."""
    notes: dict[str, int] = field(default_factory=dict)
    """Number of each kind of note in `ROW_NOTES` that accepted rows caused."""
    unused_keys: dict[str, int] = field(default_factory=dict)
    """Number of accepted rows with each key that nothing uses."""

    def add(self, other: "LineCounts") -> None:
        """Add the counts of later lines."""
        for name in ("lines", "accepted", "blank", "refused", "unwanted", "broken_off", "explained"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refusals = (self.refusals + other.refusals)[:MAX_SHOWN_FAULTS]
        self.add_notes(RowNotes(other.notes, other.unused_keys))

    def add_notes(self, notes: RowNotes) -> None:
        """Add the notes of rows."""
        for name, count in notes.counts.items():
            self.notes[name] = self.notes.get(name, 0) + count
        add_counts(self.unused_keys, notes.unused_keys)

    def refuse(self, path: str, line: int, reason: object, excerpt: str = "", lines: int = 1) -> None:
        """Count a fault, and store it if it is one of the first."""
        self.refused += lines
        if len(self.refusals) < MAX_SHOWN_FAULTS:
            shown = f"\n    {sanitize_line(excerpt, _MAX_EXCERPT_CHARACTERS)}" if excerpt.strip() else ""
            self.refusals.append(
                f"{sanitize_line(path)}:{line}: {sanitize_line(str(reason), _MAX_REASON_CHARACTERS)}{shown}"
            )


def summarize_paths(paths: Sequence[object]) -> str:
    """Return the path of a file, or the first of several and the number of the others."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def check_fault_limit(where: str, counts: LineCounts, skip_bad: int) -> None:
    """Raise DataError when enough lines are faulty that reading the rest would not change the result."""
    if counts.refused > skip_bad + _MAX_EXCESS_FAULTS:
        check_line_counts(where, counts, skip_bad, prefix="At least ")


def check_line_counts(where: str, counts: LineCounts, skip_bad: int, prefix: str = "") -> None:
    """Raise DataError for more than `skip_bad` faulty lines, or if no line was accepted."""
    where = sanitize_line(where)
    if counts.refused > skip_bad or counts.broken_off:
        allowed = f" (data.skip_bad allows {skip_bad})" if skip_bad else ""
        shown = counts.refusals if counts.accepted else _leave_out_repeats(counts.refusals)
        more = counts.refused - len(shown)
        if counts.explained == counts.refused:
            raise DataError("\n".join(counts.refusals))
        lines = [
            f"{prefix}{counts.refused} line{'s' if counts.refused > 1 else ''} of {where} cannot be used{allowed}:",
            *shown,
            *([f"... and {more} more"] if more > 0 else []),
            _fix_hint(counts),
        ]
        raise DataError("\n".join(lines))
    if not counts.accepted:
        raise DataError("\n".join([f"{where} contains no dialogue ({_format_counts(counts)}).", *counts.refusals]))


def _leave_out_repeats(refusals: Sequence[str]) -> list[str]:
    """Return the refusals; a wrong syntax or a missing column that many lines share appears only a few times."""
    counts: Counter[str] = Counter()
    shown = []
    for refusal in refusals:
        reason = re.sub(r"^.*?:\d+: ", "", refusal.partition("\n")[0])
        counts[reason] += reason.startswith(("is not valid JSON", "contains NaN", "has no column"))
        if counts[reason] <= _MAX_SHOWN_REPEATS:
            shown.append(refusal)
    return shown


def _fix_hint(counts: LineCounts) -> str:
    """Return the advice for faulty lines."""
    if counts.broken_off:
        return "Fix the file: everything after such a line is unreadable, so data.skip_bad does not help."
    fix = "Fix: correct the lines, or skip up to N of them with --set data.skip_bad=N."
    if any("is not UTF-8 text" in refusal for refusal in counts.refusals):
        fix += " Text of another encoding becomes UTF-8 with iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW_FILE."
    return fix


def _format_counts(counts: LineCounts) -> str:
    """Format the counts for a message."""
    refused = f", {counts.refused} refused" if counts.refused else ""
    unwanted = f", {counts.unwanted} marked as unwanted" if counts.unwanted else ""
    return f"{counts.lines} lines, {counts.blank} of them blank{refused}{unwanted}"
