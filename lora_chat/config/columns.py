"""The `columns` of a recipe: which columns of a table make a message, by name, as a list or as a format text."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from lora_chat.config.base import NonEmptyStr, StrictModel

MAX_COLUMNS_OF_A_TEXT = 100
"""Largest number of columns of which one text consists."""


def split_column_format(text: str) -> tuple[tuple[str, str | None], ...]:
    """Return the literal texts of a format, each with the name of the column after it; the last one may have none.

    `{{` and `}}` are braces. A name is everything between two braces: no attributes, indices or conversions. Raises
    ValueError for a brace without a partner and for an empty name.
    """
    parts: list[tuple[str, str | None]] = []
    literal, position = "", 0
    while position < len(text):
        character = text[position]
        if text[position : position + 2] in ("{{", "}}"):
            literal, position = literal + character, position + 2
        elif character == "{":
            end = text.find("}", position)
            name = text[position + 1 : end]
            if end < 0 or "{" in name:
                raise ValueError("a `{` has no `}`; write `{{` for a brace")
            if not name:
                raise ValueError("`{}` names no column")
            parts.append((literal, name))
            literal, position = "", end + 1
        elif character == "}":
            raise ValueError("a `}` has no `{`; write `}}` for a brace")
        else:
            literal, position = literal + character, position + 1
    return (*parts, (literal, None)) if literal else tuple(parts)


def is_column_format(text: str) -> bool:
    """Return whether a text is a format with columns in braces, and not the name of a column."""
    return "{" in text


def list_column_names(columns: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the columns of a text: one, a list, or the fields of a format."""
    if isinstance(columns, tuple):
        return columns
    if not is_column_format(columns):
        return (columns,)
    return tuple(dict.fromkeys(name for _, name in split_column_format(columns) if name is not None))


def _check_column_text(columns: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Raise ValueError for a format that is not well-formed, names no column or too many, and for a repeated name."""
    names = list_column_names(columns)
    if not names:
        raise ValueError("names no column; write {column} for a column, or a list for a name with braces")
    if len(names) > MAX_COLUMNS_OF_A_TEXT:
        raise ValueError(f"names more than {MAX_COLUMNS_OF_A_TEXT} columns")
    if len(set(names)) < len(names):
        raise ValueError("names a column twice")
    return columns


ColumnText = Annotated[
    NonEmptyStr | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)], AfterValidator(_check_column_text)
]


class ColumnsSection(StrictModel):
    """The columns of a table, or keys of an object, with a question and its answer, or with a text. Each is the name of
    a column, a list of names, whose texts are joined by a blank line without the empty ones, or a text with columns in
    braces, such as `"Translate into {language}: {text}"`, in which `{{` and `}}` are braces."""

    user: ColumnText | None = None
    """Column of the user's question."""
    assistant: ColumnText | None = None
    """Column of the assistant's answer."""
    system: ColumnText | None = None
    """Column of the system message."""
    text: ColumnText | None = None
    """Column of plain text for continued pretraining, instead of question and answer."""

    @model_validator(mode="after")
    def _check_columns(self) -> "ColumnsSection":
        if self.text is None and (self.user is None or self.assistant is None):
            raise ValueError("name `user` and `assistant`, or `text`")
        if self.text is not None and (self.user or self.assistant or self.system):
            raise ValueError("`text` cannot be combined with `user`, `assistant` or `system`")
        return self
