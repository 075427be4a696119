"""The data formats: how each is recognised by a row's content, and its conversion to `messages`."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from lora_chat.config.data import DataFormat
from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.encoding.control_tokens import LITERAL_END, LITERAL_START
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.system.strict_json import parse_strict_json

Row = Mapping[str, object]
"""An object as JSON or a table has it; nothing in it is checked yet."""
Columns = Mapping[str, str]
"""Column of each part: `user`, `assistant` and optionally `system`, or `text`."""

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


@dataclass(frozen=True)
class RowFormat:
    """A format of rows; one entry of `ROW_FORMATS`."""

    name: DataFormat
    matches: Callable[[Row], bool]
    """Whether a row is in this format."""
    to_messages: Callable[[Row, Columns, RowNotes], Row] | None
    """Conversion to an object with `messages`; None for plain text, which is not a dialogue."""
    column_sets: tuple[frozenset[str], ...] = ()
    """Sets of columns by which the header of a table is recognised."""


def detect_format(row: object) -> DataFormat | None:
    """Return the format of a row, or None if it is in no known format."""
    if not isinstance(row, Mapping):
        return None
    name = next((row_format.name for row_format in ROW_FORMATS if row_format.matches(row)), None)
    # A row with `messages` of an unknown kind counts as `messages`, so that the fault in them is reported.
    return name or ("messages" if "messages" in row else None)


def is_known_header(names: Collection[str]) -> bool:
    """Return whether the columns of a table include the columns of a format."""
    return any(columns <= set(names) for row_format in ROW_FORMATS for columns in row_format.column_sets)


def to_messages(
    row: object, data_format: DataFormat, columns: Columns | None = None, notes: RowNotes | None = None
) -> Row:
    """Return the row as an object with `messages` and optional `tools`, for `parse_dialogue` to check.

    Raises InvalidDialogueError with the reason.
    """
    convert = _FORMATS_BY_NAME[data_format].to_messages
    if not isinstance(row, Mapping) or convert is None:
        raise InvalidDialogueError(f"is not an object in the format {data_format}")
    converted = convert(row, columns or {}, notes or RowNotes())
    return converted if converted is row else {"turns": row.get("turns"), **converted}


def to_document(row: object, column: str = "text") -> tuple[str, bool, bool]:
    """Return the text of a row, whether it begins a document and whether the next row continues it.

    Raises InvalidDialogueError with the reason.
    """
    text = row.get(column) if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(text, str):
        raise InvalidDialogueError(f"has no text under {column!a}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidDialogueError("contains half a surrogate pair, which is not a character") from None
    if {LITERAL_START, LITERAL_END} & set(text):
        raise InvalidDialogueError("contains U+F0000 or U+F0001, which the tokenizer would drop")
    if not text.strip():
        raise InvalidDialogueError("is empty")
    return text, row.get("begins") is not False, row.get("goes_on") is True


def _speaker_key(row: Row) -> str | None:
    """Return the key that names the speaker in the first list of messages: `from` (ShareGPT) or `role`."""
    for key in _SHAREGPT_LIST_KEYS:
        entries = row.get(key)
        if isinstance(entries, list) and entries and isinstance(entries[0], Mapping):
            for speaker_key in ("from", "role"):
                if speaker_key in entries[0]:
                    return speaker_key
    return None


def _has_columns(*column_sets: frozenset[str]) -> Callable[[Row], bool]:
    """Return a check of whether a row has all keys of one of the sets."""
    return lambda row: any(row.keys() >= columns for columns in column_sets)


def _has_text_only(row: Row) -> bool:
    """Return whether a row has text and no `messages`."""
    return isinstance(row.get("text"), str) and "messages" not in row


def _from_messages(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Return the row itself, or its `conversations` as `messages`: some files have roles and content there."""
    for key in _SHAREGPT_LIST_KEYS:
        if key in row and "messages" not in row:
            return {"messages": row[key], "tools": row.get("tools")}
    return row


def _from_sharegpt(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Convert `from` and `value` to `role` and `content`, and function calls to tool calls."""
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
            raise InvalidDialogueError(
                f"message {number} is from {speaker!r}; known speakers are {', '.join(_SHAREGPT_ROLES)}"
            )
        message: dict[str, object] = {key: value for key, value in entry.items() if key not in ("from", "value")}
        if role == "call":
            calls = _parse_calls(entry.get("value"), number)
            message |= {"role": "assistant", "content": None, "tool_calls": calls}
        else:
            message |= {"role": role, "content": entry.get("value")}
        messages.append(message)
    return {"messages": messages, "tools": row.get("tools")}


def _parse_calls(value: object, number: int) -> list[object]:
    """Parse the function calls of a ShareGPT message: JSON text of one call or of a list."""
    if not isinstance(value, str):
        raise InvalidDialogueError(f"message {number} (function_call) has no text as `value`")
    try:
        calls = parse_strict_json(value)
    except ValueError as error:
        raise InvalidDialogueError(f"message {number} (function_call) {error}") from None
    return calls if isinstance(calls, list) else [calls]


def _from_alpaca(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Convert `instruction`, `input` and `output`, after the pairs of `history`."""
    output = row.get("output", row.get("response"))
    instruction, context = row.get("instruction"), row.get("input")
    if not isinstance(instruction, str) or not isinstance(output, str) or not isinstance(context, str | None):
        raise InvalidDialogueError("needs `instruction` and `output` (and optionally `input`) as text")
    messages = _system_messages(row.get("system"))
    history = row.get("history") or []
    if not isinstance(history, list):
        raise InvalidDialogueError("has a `history` that is not a list of pairs")
    for number, turn in enumerate(history, 1):
        if not isinstance(turn, list) or len(turn) != 2:
            raise InvalidDialogueError(f"turn {number} of `history` is not a pair of question and answer")
        messages += _turn_messages(*turn)
    question = f"{instruction}\n{context}" if context and instruction.strip() else (context or instruction)
    return {"messages": messages + _turn_messages(question, output)}


def _from_prompt(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Convert `prompt` and `completion`, texts or lists of messages; only the completion carries loss."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"messages": _system_messages(row.get("system")) + _turn_messages(prompt, completion)}
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise InvalidDialogueError("needs `prompt` and `completion`, both texts or both lists of messages")
    history = [dict(m, train=False) if isinstance(m, Mapping) and m.get("role") == "assistant" else m for m in prompt]
    return {"messages": history + completion, "tools": row.get("tools")}


def _from_columns(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Convert the columns that the recipe names."""
    if not columns:
        raise InvalidDialogueError("cannot be read as columns without data.columns, which names them")
    missing = [name for name in columns.values() if name not in row]
    if missing:
        raise InvalidDialogueError(
            f"has no column {missing[0]!a} (its columns: {', '.join(ascii(k) for k in list(row)[:8])})"
        )
    system = row[columns["system"]] if "system" in columns else None
    return {"messages": _system_messages(system) + _turn_messages(row[columns["user"]], row[columns["assistant"]])}


def _system_messages(content: object) -> list[dict[str, object]]:
    return [{"role": "system", "content": content}] if content else []


def _turn_messages(question: object, answer: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


_PROMPT_COLUMNS = frozenset({"prompt", "completion"})
_ALPACA_COLUMNS = (frozenset({"instruction", "output"}), frozenset({"instruction", "response"}))

ROW_FORMATS = (
    RowFormat("messages", lambda row: _speaker_key(row) == "role", _from_messages, (frozenset({"messages"}),)),
    RowFormat("sharegpt", lambda row: _speaker_key(row) == "from", _from_sharegpt, (frozenset({"conversations"}),)),
    RowFormat("prompt_completion", _has_columns(_PROMPT_COLUMNS), _from_prompt, (_PROMPT_COLUMNS,)),
    RowFormat("alpaca", _has_columns(*_ALPACA_COLUMNS), _from_alpaca, _ALPACA_COLUMNS),
    # Columns of any name are never recognised: the recipe names them.
    RowFormat("columns", lambda row: False, _from_columns),
    RowFormat("text", _has_text_only, None, (frozenset({"text"}),)),
)
"""Every data format. A row is in the first one that matches; `config/data.py` lists the names."""
_FORMATS_BY_NAME = {row_format.name: row_format for row_format in ROW_FORMATS}
