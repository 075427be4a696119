"""Parse a row with `messages` (OpenAI's format) as a Dialogue; anything that would be lost is refused."""

import json
from collections.abc import Mapping
from typing import cast

from lora_chat.data.dialogue import Dialogue, InvalidDialogueError, Message, Role, ToolCall, check_role_order
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.system.strict_json import parse_strict_json

Entry = Mapping[str, object]
"""A message as the data has it, unchecked."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_KNOWN_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "train", "weight", *_REASONING_KEYS}
_NULLABLE_KEYS = {"refusal", "audio", "annotations", "function_call"}
"""Keys of OpenAI's answers that may be ignored if they are null or empty."""
_FORBIDDEN_CHARACTERS = {"\U000f0000", "\U000f0001"}
"""Private characters with which control tokens are marked; transformers removes them from content."""


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
    dialogue = Dialogue(messages, line, _read_tools(row.get("tools")))
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
    calls = _read_calls(entry.get("tool_calls"), where)
    if calls and role != "assistant":
        raise InvalidDialogueError(f"{where} has tool_calls; only the assistant calls tools")
    reasoning = _read_reasoning(entry, where)
    if reasoning is not None and role != "assistant":
        raise InvalidDialogueError(f"{where} has reasoning; only the assistant can have reasoning")
    content = "" if calls and entry.get("content") is None else _read_text(entry.get("content"), where)
    if role in ("user", "assistant") and not content.strip() and not calls:
        raise InvalidDialogueError(f"{where} is empty")
    return Message(
        role=role,
        content=content,
        reasoning=reasoning,
        tool_calls=calls,
        name=_read_name(entry, "name", where),
        tool_call_id=_read_name(entry, "tool_call_id", where),
        trained=_read_trained_flag(entry, where),
    )


def _read_text(content: object, where: str) -> str:
    """Return a text, given as a string or as OpenAI's list of text parts."""
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        if not parts or not all(isinstance(part, str) for part in parts):
            raise InvalidDialogueError(f"{where} has parts of `content` that are not text")
        content = "".join(cast("list[str]", parts))
    if not isinstance(content, str):
        raise InvalidDialogueError(f"{where} has no text as `content`")
    return _check_text(content, where)


def _check_text(text: str, where: str) -> str:
    """Return a text; raises InvalidDialogueError for characters that the tokenizer cannot keep."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidDialogueError(f"{where} contains half a surrogate pair, which is not a character") from None
    if _FORBIDDEN_CHARACTERS & set(text):
        raise InvalidDialogueError(f"{where} contains U+F0000 or U+F0001, which the tokenizer would drop")
    return text


def _read_reasoning(entry: Entry, where: str) -> str | None:
    """Return the reasoning of a message, which may be under several keys but must be one text."""
    texts = [text for text in map(entry.get, _REASONING_KEYS) if text not in (None, "")]
    if not texts:
        return None
    first = texts[0]
    if not isinstance(first, str) or any(text != first for text in texts):
        raise InvalidDialogueError(f"{where} has reasoning that is not one text")
    return _check_text(first, where)


def _read_name(entry: Entry, key: str, where: str) -> str | None:
    """Return the text under a key, or None."""
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidDialogueError(f"{where} has a `{key}` that is not text")
    return _check_text(value, where)


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


def _read_calls(calls: object, where: str) -> tuple[ToolCall, ...]:
    """Parse the tool calls of a message."""
    if calls is None or calls == []:
        return ()
    if not isinstance(calls, list):
        raise InvalidDialogueError(f"{where}: `tool_calls` must be a list")
    return tuple(_read_call(call, where) for call in calls)


def _read_call(call: object, where: str) -> ToolCall:
    """Parse a tool call, given as OpenAI's object or as its function only."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if (
        not isinstance(call, dict)
        or not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or not function["name"]
    ):
        raise InvalidDialogueError(f"{where}: a tool call needs a function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_strict_json(arguments or "{}")
        except ValueError as error:
            raise InvalidDialogueError(f"{where}: the arguments of {function['name']!a}: {error}") from None
    if not isinstance(arguments, dict):
        raise InvalidDialogueError(f"{where}: the arguments of {function['name']!a} are not a JSON object")
    return ToolCall(
        _check_text(function["name"], where),
        _dump_json(arguments, f"{where}: the arguments of {function['name']!a}"),
        _read_name(call, "id", where),
    )


def _read_tools(tools: object) -> str | None:
    """Return the JSON text of the function descriptions, given as a list or as JSON text; None if there are none."""
    if isinstance(tools, str):
        try:
            tools = parse_strict_json(tools) if tools.strip() else None
        except ValueError as error:
            raise InvalidDialogueError(f"`tools` {error}") from None
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidDialogueError("`tools` must be a list of function descriptions")
    return _dump_json(tools, "`tools`")


def _dump_json(value: object, where: str) -> str:
    """Return a value as JSON text; raises InvalidDialogueError for dates and bytes, which Parquet can contain."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidDialogueError(f"{where} cannot be written as JSON: {error}") from None
    return _check_text(text, where)
