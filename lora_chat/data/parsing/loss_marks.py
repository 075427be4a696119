"""Read whether a message carries loss: its own marks, and the marks of the parts of its content."""

from collections.abc import Iterator, Mapping

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.keys import PART, check_unused
from lora_chat.data.parsing.parts import IGNORED_KEYS, TEXT_KEYS
from lora_chat.data.parsing.roles import Speaker, role_of
from lora_chat.data.parsing.row_notes import RowNotes

_SWITCH_KEYS = ("train", "training", "loss")
"""Keys with true or false that decide whether a message carries loss."""
_WEIGHT_KEYS = ("weight", "loss_weight", "loss_scale")
"""Keys with 0 or 1 that decide the same."""
LOSS_KEYS = (*_SWITCH_KEYS, *_WEIGHT_KEYS)
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_PART_KEYS = frozenset({*TEXT_KEYS, *IGNORED_KEYS, *LOSS_KEYS})


def read_trained_flag(fields: Mapping[str, object], speaker: Speaker, where: str) -> bool:
    """Return whether a message carries loss, by its marks and the marks of its parts."""
    flags = dict(_read_marks(fields, speaker, where))
    marked = [dict(_read_marks(part, speaker, where)) for part in _iterate_parts(fields.get("content"))]
    if any(marked):
        parts = {flag for marks in marked for flag in (marks.values() or [True])}
        if len(parts) > 1 and role_of(speaker) == "assistant":
            raise InvalidDialogueError(
                f"{where} has parts with and without loss ({next(key for marks in marked for key in marks)}); "
                "loss is decided for whole messages, so give all parts of a message the same one"
            )
        flags["the parts"] = all(parts)
    if len(set(flags.values())) > 1:
        raise InvalidDialogueError(f"{where}: {' and '.join(f'`{key}`' for key in flags)} contradict each other")
    return all(flags.values())


def _iterate_parts(content: object) -> Iterator[Mapping[str, object]]:
    """Yield the parts of a content that are objects."""
    parts = content if isinstance(content, list) else [content]
    yield from (part for part in parts if isinstance(part, Mapping))


def _read_marks(fields: Mapping[str, object], speaker: Speaker, where: str) -> Iterator[tuple[str, bool]]:
    """Yield each mark of a message or part with its meaning."""
    for key in LOSS_KEYS:
        value = fields.get(key)
        if value is None:
            continue
        if key in _SWITCH_KEYS and not isinstance(value, bool):
            raise InvalidDialogueError(f"{where}: `{key}` must be true or false")
        if key in _WEIGHT_KEYS and (isinstance(value, bool) or value not in (0, 1)):
            raise InvalidDialogueError(f"{where}: `{key}` must be 0 or 1")
        if value is True and role_of(speaker) != "assistant":
            raise InvalidDialogueError(
                f"{where} has {key}: true, but only replies of the assistant carry loss; remove it, or train on all "
                "tokens of the prompts with data.loss=all"
            )
        yield key, bool(value)


def check_parts(content: object, notes: RowNotes, where: str) -> None:
    """Refuse keys of text parts that carry meaning and are not used; count the others."""
    for part in _iterate_parts(content):
        if part.get("type") in _TEXT_PARTS and any(key in part for key in TEXT_KEYS):
            check_unused(part, _PART_KEYS, PART, notes, where)
