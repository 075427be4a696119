"""Check that a row with two conversations contains the same one twice."""

from collections.abc import Iterator, Mapping, Sequence

from lora_chat.config.data import DataFormat
from lora_chat.data.dialogue import Dialogue, InvalidDialogueError, Message
from lora_chat.data.parsing.formats import find_used_keys
from lora_chat.data.parsing.message_lists import LIST_KEYS, OTHER_LIST_KEYS, decode_messages
from lora_chat.data.parsing.messages import parse_dialogue

_REPLY_KEYS = ("completion", "output", "response")
"""Keys whose text is a reply, in rows of other formats."""


def check_copies(row: Mapping[str, object], data_format: DataFormat, dialogue: Dialogue) -> None:
    """Raise InvalidDialogueError if a row has another conversation or reply than the one that is read."""
    used = find_used_keys(row, data_format, {})
    for key in (*LIST_KEYS, *OTHER_LIST_KEYS):
        entries = decode_messages(row[key]) if key not in used and row.get(key) else None
        if entries is not None and not _is_same(entries, dialogue):
            raise _conflict_error(key)
    replies = {message.content.strip() for message in dialogue.messages if message.role == "assistant"}
    for key in _REPLY_KEYS:
        if key not in used and any(text not in replies for text in _iterate_texts(row.get(key))):
            raise _conflict_error(key)


def _conflict_error(key: str) -> InvalidDialogueError:
    """Return the error for a key with another conversation."""
    return InvalidDialogueError(
        f"has two conversations that differ, one under `{key}`; keep one of them, choose with data.format, "
        f"or leave one out with --set data.ignore_keys={key}"
    )


def _is_same(entries: Sequence[object], dialogue: Dialogue) -> bool:
    """Return whether a list of messages is the same conversation, with or without its system message."""
    try:
        other = parse_dialogue({"messages": list(entries)})
    except InvalidDialogueError:
        return False
    first, second = ([_content_of(m) for m in d.messages] for d in (dialogue, other))
    if len(first) != len(second):
        first, second = ([m for m in messages if m[0] != "system"] for messages in (first, second))
    return first == second


def _content_of(message: Message) -> tuple[object, ...]:
    calls = [(call.name, call.arguments) for call in message.tool_calls]
    return message.role, message.content, message.reasoning, calls


def _iterate_texts(value: object) -> Iterator[str]:
    """Yield the text of a reply, or the texts of a list of messages."""
    if isinstance(value, str) and value.strip():
        yield value.strip()
    for message in decode_messages(value) or [] if isinstance(value, list) else []:
        text = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(text, str) and text.strip():
            yield text.strip()
