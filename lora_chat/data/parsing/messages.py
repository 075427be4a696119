"""Parse a row with `messages` (OpenAI's format) as a Dialogue; anything that would be lost is refused."""

from collections.abc import Mapping

from lora_chat.data.dialogue import Dialogue, InvalidDialogueError, Message, Role, check_role_order
from lora_chat.data.parsing.content import REASONING_KEYS, Entry, read_name, read_reasoning, read_text
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.data.parsing.tool_calls import read_calls, read_tools

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_KNOWN_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "train", "weight", *REASONING_KEYS}
_NULLABLE_KEYS = {"refusal", "audio", "annotations", "function_call"}
"""Keys of OpenAI's answers that may be ignored if they are null or empty."""


def parse_dialogue(row: object, line: int = 0, notes: RowNotes | None = None) -> Dialogue:
    """Check a decoded row and return it as a Dialogue; raises InvalidDialogueError with the reason.

    Only `messages`, `tools` and `turns` are read; other keys of the row reach neither the template nor the trainer.
    """
    if not isinstance(row, Mapping):
        raise InvalidDialogueError("is not a JSON object with `messages`")
    if "messages" not in row:
        raise InvalidDialogueError(
            f"has no `messages` (its keys: {', '.join(ascii(k) for k in list(row)[:8]) or 'none'})"
        )
    entries = row["messages"]
    if not isinstance(entries, list) or not entries:
        raise InvalidDialogueError("`messages` must be a list with at least one message")
    messages = tuple(_parse_entry(entry, number) for number, entry in enumerate(entries, 1))
    check_role_order(messages)
    dialogue = Dialogue(messages, line, read_tools(row.get("tools")))
    return dialogue.last_turn_only if row.get("turns") == "last" else dialogue


def _parse_entry(entry: object, number: int) -> Message:
    """Parse a message, and attach it to the error if it is faulty."""
    try:
        return _parse_message(entry, number)
    except InvalidDialogueError as error:
        error.faulty_entry = entry
        raise


def _parse_message(entry: object, number: int) -> Message:
    """Parse a message; raises InvalidDialogueError for an unknown role or key, or an invalid value."""
    if not isinstance(entry, dict):
        raise InvalidDialogueError(f"message {number} is not an object with `role` and `content`")
    role = _ROLES.get(entry["role"]) if isinstance(entry.get("role"), str) else None
    if role is None:
        raise InvalidDialogueError(
            f"message {number} has the role {entry.get('role')!r}; known roles are {', '.join(_ROLES)}"
        )
    where = f"message {number} ({role})"
    extra = sorted(
        key for key in entry.keys() - _KNOWN_KEYS if key not in _NULLABLE_KEYS or entry[key] not in (None, [], {})
    )
    if extra:
        raise InvalidDialogueError(f"{where} has {extra[0]!a}, which would be lost")
    calls = read_calls(entry.get("tool_calls"), where)
    if calls and role != "assistant":
        raise InvalidDialogueError(f"{where} has tool_calls; only the assistant calls tools")
    reasoning = read_reasoning(entry, where)
    if reasoning is not None and role != "assistant":
        raise InvalidDialogueError(f"{where} has reasoning; only the assistant can have reasoning")
    content = "" if calls and entry.get("content") is None else read_text(entry.get("content"), where)
    if role in ("user", "assistant") and not content.strip() and not calls:
        raise InvalidDialogueError(f"{where} is empty")
    return Message(
        role=role,
        content=content,
        reasoning=reasoning,
        tool_calls=calls,
        name=read_name(entry, "name", where),
        tool_call_id=read_name(entry, "tool_call_id", where),
        trained=_read_trained_flag(entry, where),
    )


def _read_trained_flag(entry: Entry, where: str) -> bool:
    """Return whether a message carries loss, by `train` (true or false) or `weight` (0 or 1)."""
    train, weight = entry.get("train"), entry.get("weight")
    if train is not None and not isinstance(train, bool):
        raise InvalidDialogueError(f"{where}: `train` must be true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise InvalidDialogueError(f"{where}: `weight` must be 0 or 1")
    if train is not None and weight is not None and train != bool(weight):
        raise InvalidDialogueError(f"{where}: `train` and `weight` contradict each other")
    return bool(weight) if train is None and weight is not None else train is not False
