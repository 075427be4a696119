"""What reading did to rows or saw in them, counted, so that nothing happens to a user's data unsaid."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lora_chat.data.parsing.chat_markup import CHAT_MARKUPS
from lora_chat.system.sanitize import sanitize_line

_MAX_UNUSED_KEYS = 100
"""Most different unused keys that are counted; the rest is counted under `OTHER_KEYS`."""
_MAX_SHOWN_KEYS, _MAX_KEY_CHARACTERS = 12, 60
OTHER_KEYS = "other keys"


@dataclass(frozen=True)
class NoteKind:
    """A kind of note; one entry of `ROW_NOTES`."""

    name: str
    title: str
    """Text that `data` and `sft` show after the count."""


ROW_NOTES: tuple[NoteKind, ...] = (
    NoteKind("chosen", "preference pairs without their rejected reply (data.drop_unwanted)"),
    NoteKind("open_end", "dialogues without the messages after their last reply, which nothing answers"),
    NoteKind("joined_messages", "messages joined with the message of the same role before them (data.turn_order)"),
    NoteKind("system_added", "dialogues had no system message and got the recipe's"),
    NoteKind("system_replaced", "dialogues had another system message, replaced by the recipe's"),
    NoteKind("system_own", "dialogues keep a system message other than the recipe's"),
    NoteKind("row_list", "rows from a list under a key of a JSON object"),
    NoteKind("split_list", "rows from the list `train` of a JSON object, whose other lists are not used"),
    *(NoteKind(markup.text_note, markup.text_title) for markup in CHAT_MARKUPS),
    *(NoteKind(markup.messages_note, markup.messages_title) for markup in CHAT_MARKUPS),
    NoteKind("call_tags", "calls in <tool_call> tags read as tool calls, because the chat template writes these tags"),
    NoteKind("joined_calls", "calls joined to the reply or the calls before them"),
)
"""Every kind of note, in the order in which it is shown."""


@dataclass
class RowNotes:
    """Counts of notes by name, and of rows by the name of a key that nothing uses."""

    counts: dict[str, int] = field(default_factory=dict)
    unused_keys: dict[str, int] = field(default_factory=dict)
    ignored_keys: frozenset[str] = frozenset()
    """Keys that the recipe leaves out although they carry meaning."""

    def add(self, name: str, count: int = 1) -> None:
        """Count a note; `name` is in `ROW_NOTES`."""
        self.counts[name] = self.counts.get(name, 0) + count

    def add_unused(self, keys: Iterable[str]) -> None:
        """Count the keys of one row that nothing uses."""
        for key in dict.fromkeys(keys):
            add_counts(self.unused_keys, {sanitize_line(key, _MAX_KEY_CHARACTERS): 1})


def add_counts(counts: dict[str, int], more: dict[str, int]) -> None:
    """Add counts of keys to others, in place; new keys beyond the limit share one count."""
    for key, count in more.items():
        name = key if key in counts or len(counts) < _MAX_UNUSED_KEYS else OTHER_KEYS
        counts[name] = counts.get(name, 0) + count


def format_notes(notes: dict[str, int], unused_keys: dict[str, int]) -> Iterator[str]:
    """Yield a line for each kind of note that occurred, and one for the unused keys."""
    for kind in ROW_NOTES:
        if notes.get(kind.name):
            yield f"{notes[kind.name]:,} {kind.title}"
    if unused_keys:
        ordered = sorted(unused_keys.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{sanitize_line(key, 60)} ({count:,} rows)" for key, count in ordered[:_MAX_SHOWN_KEYS]]
        more = [f"{len(ordered) - _MAX_SHOWN_KEYS} more"] if len(ordered) > _MAX_SHOWN_KEYS else []
        yield f"not used: {', '.join([*shown, *more])}"
