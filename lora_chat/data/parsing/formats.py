"""The common formats of chat data: which one a row is in, and the same row as `messages`.

Recognised by what the row holds, never by a file's name.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args

from lora_chat.config.data import DataFormat
from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.encoding.control_tokens import LITERAL_END, LITERAL_START
from lora_chat.system.strict_json import parse_strict_json

FORMATS: tuple[DataFormat, ...] = get_args(DataFormat)

Columns = Mapping[str, str]
"""Which column says what: `user` and `assistant`, perhaps `system`."""

_SHAREGPT_LIST_KEYS = ("conversations", "conversation", "messages")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_ALPACA_KEY_SETS = ({"instruction", "output"}, {"instruction", "response"})
_PROMPT_KEYS = {"prompt", "completion"}


def detect_format(row: Any) -> DataFormat | None:
    """The format a row is in; None if it is in none."""
    if not isinstance(row, Mapping):
        return None
    for key in _SHAREGPT_LIST_KEYS:
        entries = row.get(key)
        if isinstance(entries, list) and entries and isinstance(entries[0], Mapping):
            if "from" in entries[0]:
                return "sharegpt"
            if "role" in entries[0]:
                return "messages"
    if row.keys() >= _PROMPT_KEYS:
        return "prompt_completion"
    if any(row.keys() >= keys for keys in _ALPACA_KEY_SETS):
        return "alpaca"
    if "messages" in row:
        return "messages"
    return "text" if isinstance(row.get("text"), str) else None


def is_known_header(names: Collection[str]) -> bool:
    """Whether a table's columns are those of a format."""
    sets: tuple[set[str], ...] = (_PROMPT_KEYS, *_ALPACA_KEY_SETS, {"messages"}, {"conversations"}, {"text"})
    return any(keys <= set(names) for keys in sets)


def to_messages(row: Any, data_format: DataFormat, columns: Columns | None = None) -> Any:
    """The row as an object with `messages` and perhaps `tools`; raises InvalidDialogueError with the reason.

    What it makes is checked by `parse_dialogue` as if it had been written so.
    """
    if not isinstance(row, Mapping):
        raise InvalidDialogueError(f"is not an object in the format {data_format}")
    made = _from_columns(row, columns or {}) if data_format == "columns" else _CONVERTERS[data_format](row)
    return made if made is row else {"turns": row.get("turns")} | made


def to_document(row: Any, column: str = "text") -> tuple[str, bool, bool]:
    """The text of a row, whether it begins there and whether the next row goes on with it.

    Raises InvalidDialogueError with the reason.
    """
    if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
        raise InvalidDialogueError(f"has no text under {column!a}")
    try:
        row[column].encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidDialogueError("holds half a surrogate pair, which is no character") from None
    if {LITERAL_START, LITERAL_END} & set(row[column]):
        raise InvalidDialogueError("holds U+F0000 or U+F0001, which the tokenizer would drop")
    if not row[column].strip():
        raise InvalidDialogueError("is empty")
    return row[column], row.get("begins") is not False, row.get("goes_on") is True


def _from_messages(row: Mapping[str, Any]) -> Any:
    for key in _SHAREGPT_LIST_KEYS:  # some files have roles and content under `conversations`
        if key != "messages" and key in row and "messages" not in row:
            return {"messages": row[key], "tools": row.get("tools")}
    return row


def _from_sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    entries = next((row[key] for key in _SHAREGPT_LIST_KEYS if key in row), None)
    if not isinstance(entries, list) or not entries:
        raise InvalidDialogueError("needs `conversations`, a list of messages")
    messages = _system_messages(row.get("system"))
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise InvalidDialogueError(f"message {number} is not an object with `from` and `value`")
        speaker = entry.get("from")
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise InvalidDialogueError(f"message {number} is from {speaker!r}; known are {', '.join(_SHAREGPT_ROLES)}")
        rest = {key: value for key, value in entry.items() if key not in ("from", "value")}
        if role == "call":
            messages.append(
                {"role": "assistant", "content": None, "tool_calls": _parse_calls(entry.get("value"), number)}
            )
        else:
            messages.append({"role": role, "content": entry.get("value")})
        messages[-1] = rest | messages[-1]
    return {"messages": messages, "tools": row.get("tools")}


def _parse_calls(value: Any, number: int) -> list[Any]:
    """A function call as ShareGPT files have it: JSON text of one call or of a list."""
    if not isinstance(value, str):
        raise InvalidDialogueError(f"message {number} (function_call) has no text as `value`")
    try:
        calls = parse_strict_json(value)
    except ValueError as error:
        raise InvalidDialogueError(f"message {number} (function_call) {error}") from None
    return calls if isinstance(calls, list) else [calls]


def _from_alpaca(row: Mapping[str, Any]) -> dict[str, Any]:
    output = row.get("output", row.get("response"))
    asked, more = row.get("instruction"), row.get("input")
    if not isinstance(asked, str) or not isinstance(output, str) or not isinstance(more, str | None):
        raise InvalidDialogueError("needs `instruction` and `output` (and perhaps `input`) as text")
    messages = _system_messages(row.get("system"))
    history = row.get("history") or []
    if not isinstance(history, list):
        raise InvalidDialogueError("has a `history` that is not a list of pairs")
    for number, turn in enumerate(history, 1):
        if not isinstance(turn, list) or len(turn) != 2:
            raise InvalidDialogueError(f"turn {number} of `history` is not a pair of question and answer")
        messages += _turn_messages(*turn)
    question = f"{asked}\n{more}" if more and asked.strip() else (more or asked)
    return {"messages": messages + _turn_messages(question, output)}


def _from_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """Strings, or lists of messages; only the completion carries loss."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"messages": _system_messages(row.get("system")) + _turn_messages(prompt, completion)}
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise InvalidDialogueError("needs `prompt` and `completion`, both texts or both lists of messages")
    before = [dict(m, train=False) if isinstance(m, Mapping) and m.get("role") == "assistant" else m for m in prompt]
    return {"messages": before + completion, "tools": row.get("tools")}


def _from_columns(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    if not columns:
        raise InvalidDialogueError("cannot be read as columns without data.columns, which names them")
    missing = [name for name in columns.values() if name not in row]
    if missing:
        raise InvalidDialogueError(
            f"has no column {missing[0]!a} (its columns: {', '.join(ascii(k) for k in list(row)[:8])})"
        )
    system = row[columns["system"]] if "system" in columns else None
    return {"messages": _system_messages(system) + _turn_messages(row[columns["user"]], row[columns["assistant"]])}


def _system_messages(content: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": content}] if content else []


def _turn_messages(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


_CONVERTERS: dict[DataFormat, Callable[[Mapping[str, Any]], Any]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt_completion": _from_prompt,
}
