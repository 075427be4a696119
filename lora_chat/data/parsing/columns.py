"""The text of a message from the columns that a recipe names: one, several, or a format with their names."""

from collections.abc import Mapping

from lora_chat.config.columns import is_column_format, list_column_names, split_column_format
from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.values import plain_text

Columns = Mapping[str, str | tuple[str, ...]]
"""Columns of each part: `user`, `assistant` and optionally `system`, or `text`."""
_MAX_SHOWN_COLUMNS = 8


def list_used_columns(columns: Columns) -> frozenset[str]:
    """Return the names of all columns that the parts use."""
    return frozenset(name for part in columns.values() for name in list_column_names(part))


def check_columns(row: Mapping[str, object], columns: Columns) -> None:
    """Raise InvalidDialogueError for a column that a row does not have."""
    missing = [name for part in columns.values() for name in list_column_names(part) if name not in row]
    if missing:
        shown = ", ".join(ascii(key) for key in list(row)[:_MAX_SHOWN_COLUMNS]) or "none"
        raise InvalidDialogueError(f"has no column {missing[0]!a} (its columns: {shown})")


def read_column(row: Mapping[str, object], columns: str | tuple[str, ...]) -> object:
    """Return the value of one column, or the text of several; nothing if all of several are empty.

    Raises InvalidDialogueError for a cell among several that is not text.
    """
    if isinstance(columns, str) and not is_column_format(columns):
        return row[columns]
    texts = {name: _read_cell(row[name], name) for name in list_column_names(columns)}
    if not any(text.strip() for text in texts.values()):
        return None
    if isinstance(columns, tuple):
        return "\n\n".join(text for text in texts.values() if text.strip())
    return "".join(literal + ("" if name is None else texts[name]) for literal, name in split_column_format(columns))


def _read_cell(value: object, name: str) -> str:
    """Return the text of a cell, a number or a boolean as text; null is an empty text."""
    text = "" if value is None else plain_text(value, f"the column {name!a}")
    if text is None:
        raise InvalidDialogueError(f"has no text in the column {name!a}")
    return text
