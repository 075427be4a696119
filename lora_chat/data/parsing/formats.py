"""The data formats: how each is recognised by a row's content, and its conversion to `messages`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lora_chat.config.data import DataFormat
from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.encoding.control_tokens import LITERAL_END, LITERAL_START
from lora_chat.data.parsing.columns import Columns, check_columns, list_used_columns, read_column
from lora_chat.data.parsing.entries import find_speaker_key
from lora_chat.data.parsing.keys import format_keys
from lora_chat.data.parsing.loss_marks import LOSS_KEYS
from lora_chat.data.parsing.message_lists import (
    LIST_KEYS,
    Row,
    decode_messages,
    find_message_list,
    has_sharegpt_names,
    read_history,
    turn_messages,
)
from lora_chat.data.parsing.roles import find_speaker
from lora_chat.data.parsing.row_fields import SHARED_KEYS, SYSTEM_KEYS, read_field, shared_fields
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.data.parsing.values import plain_text


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
    used_keys: frozenset[str] = frozenset()
    """Keys of a row that the conversion uses, beside its list of messages and the keys that all dialogues share."""


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
    converted = convert(row, columns or {}, RowNotes() if notes is None else notes)
    return {**shared_fields(row), **converted}


def find_used_keys(row: Row, data_format: DataFormat, columns: Columns) -> frozenset[str]:
    """Return the keys of a row that are read in a format."""
    own = _FORMATS_BY_NAME[data_format].used_keys
    if data_format == "text":
        return own | list_used_columns(columns or {"text": "text"})
    if data_format == "columns":
        return list_used_columns(columns) | (SHARED_KEYS - frozenset(SYSTEM_KEYS))
    if data_format in ("messages", "sharegpt"):
        messages = find_message_list(row)
        own = frozenset({messages[0]} if messages else LIST_KEYS)
    return own | SHARED_KEYS


def to_document(row: object, column: str | tuple[str, ...] = "text") -> tuple[str, bool, bool]:
    """Return the text of a row, whether it begins a document and whether the next row continues it.

    Raises InvalidDialogueError with the reason.
    """
    if not isinstance(row, Mapping):
        raise InvalidDialogueError("is not an object with a text")
    if column != "text":
        check_columns(row, {"text": column})
    text = row.get("text") if column == "text" else read_column(row, column)
    if not isinstance(text, str):
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


def _is_message_list(*, sharegpt: bool) -> Callable[[Row], bool]:
    """Return a check of whether a row has a list of messages, with or without the names of ShareGPT."""

    def check(row: Row) -> bool:
        messages = find_message_list(row)
        return messages is not None and has_sharegpt_names(messages[1][0]) == sharegpt

    return check


def _has_columns(*column_sets: frozenset[str]) -> Callable[[Row], bool]:
    """Return a check of whether a row has all keys of one of the sets."""
    return lambda row: any(row.keys() >= columns for columns in column_sets)


def _has_text_only(row: Row) -> bool:
    """Return whether a row has text and no `messages`."""
    return isinstance(row.get("text"), str) and "messages" not in row


def _from_messages(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Return `messages`, or another list of messages in its place."""
    entries = row["messages"] if row.get("messages") else _find_list(row)
    if entries is None and "messages" not in row:
        raise InvalidDialogueError(f"has no `messages` (its keys: {format_keys(row)})")
    return {"messages": entries}


def _from_sharegpt(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Return the list of messages as `messages`."""
    entries = _find_list(row)
    if not isinstance(entries, list) or not entries:
        raise InvalidDialogueError("needs `conversations`, a list of messages")
    return {"messages": entries}


def _find_list(row: Row) -> object:
    """Return the list of messages of a row, or the faulty value in its place."""
    messages = find_message_list(row)
    return messages[1] if messages else next((row[key] for key in LIST_KEYS if key in row), None)


def _from_alpaca(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Convert a question and an answer, such as `instruction`, `input` and `output`, after the turns of `history`.

    Dolly's `context` is another name of `input`.
    """
    question, answer = (_read_first(row, keys) for keys in (_QUESTION_COLUMNS, _ANSWER_COLUMNS))
    addition = read_field(row, _ADDITION_COLUMNS)
    context = plain_text(addition, "`input`")
    if question is None or answer is None or (context is None and addition is not None):
        raise InvalidDialogueError("needs `instruction` and `output` (and optionally `input`) as text")
    messages = read_history(row.get("history"))
    question = f"{question}\n{context}" if context and question.strip() else (context or question)
    return {"messages": messages + turn_messages(question, answer)}


def _read_first(row: Row, keys: Sequence[str]) -> str | None:
    """Return the text or number under the first of the keys that the row has."""
    return plain_text(read_field(row, keys), f"`{keys[0]}`")


def _from_prompt(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Convert `prompt` and `completion`, texts or lists of messages; only the completion carries loss."""
    prompt, completion = row.get("prompt"), row.get("completion")
    history, replies = decode_messages(prompt), decode_messages(completion)
    if history is None and plain_text(prompt, "`prompt`") is not None:
        history = [{"role": "user", "content": prompt}]
    if replies is None and plain_text(completion, "`completion`") is not None:
        replies = [{"role": "assistant", "content": completion}]
    if history is None or replies is None:
        raise InvalidDialogueError("needs `prompt` and `completion`, each a text or a list of messages")
    return {"messages": [_without_loss(message) for message in history] + replies}


def _without_loss(message: object) -> object:
    """Return a message of a prompt as one that is not trained."""
    key = find_speaker_key(message)
    if isinstance(message, Mapping) and key and find_speaker(message[key]) in ("assistant", "call"):
        return {**{name: value for name, value in message.items() if name not in LOSS_KEYS}, "train": False}
    return message


def _from_columns(row: Row, columns: Columns, notes: RowNotes) -> Row:
    """Convert the columns that the recipe names."""
    if not columns:
        raise InvalidDialogueError("cannot be read as columns without data.columns, which names them")
    check_columns(row, columns)
    system = read_column(row, columns["system"]) if "system" in columns else None
    question, answer = (read_column(row, columns[part]) for part in ("user", "assistant"))
    return {"messages": turn_messages(question, answer), "system": system}


_PROMPT_COLUMNS = frozenset({"prompt", "completion"})
_QUESTION_COLUMNS, _ANSWER_COLUMNS = ("instruction", "query"), ("output", "response")
_ADDITION_COLUMNS = ("input", "context")
_ALPACA_COLUMNS = tuple(
    frozenset(names) for names in (("instruction", "output"), ("instruction", "response"), ("query", "response"))
)
_ALPACA_KEYS = frozenset({*_QUESTION_COLUMNS, *_ANSWER_COLUMNS, *_ADDITION_COLUMNS, "history"})

ROW_FORMATS = (
    RowFormat("messages", _is_message_list(sharegpt=False), _from_messages, (frozenset({"messages"}),)),
    RowFormat("sharegpt", _is_message_list(sharegpt=True), _from_sharegpt, (frozenset({"conversations"}),)),
    RowFormat("prompt_completion", _has_columns(_PROMPT_COLUMNS), _from_prompt, (_PROMPT_COLUMNS,), _PROMPT_COLUMNS),
    RowFormat("alpaca", _has_columns(*_ALPACA_COLUMNS), _from_alpaca, _ALPACA_COLUMNS, _ALPACA_KEYS),
    # Columns of any name are never recognised: the recipe names them.
    RowFormat("columns", lambda row: False, _from_columns),
    RowFormat("text", _has_text_only, None, (frozenset({"text"}),), frozenset({"begins", "goes_on"})),
)
"""Every data format. A row is in the first one that matches; `config/data.py` lists the names."""
_FORMATS_BY_NAME = {row_format.name: row_format for row_format in ROW_FORMATS}
