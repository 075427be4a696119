"""The columns of a table that become messages: by their names, otherwise by their contents, which is a guess."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lora_chat.config.columns import is_column_format
from lora_chat.data.parsing.column_guess import guess_pair, normalize_column_name
from lora_chat.pipeline.new.languages import measure_languages

Row = Mapping[str, object]

_CONTEXT_NAMES = ("context", "passage", "article", "document", "paragraph", "text")
_QUESTION_NAMES = ("question", "query")
_ANSWER_NAMES = ("answer", "answertext")
_LABEL_NAMES = ("label", "class", "category", "intent", "sentiment", "labeltext", "labelname", "target", "tag")
_TEXT_NAMES = ("text", "sentence", "content", "review", "utterance", "message", "tweet", "comment", "body", "title")
_REPLY_NAMES = ("answer", "response", "reply", "completion", "output", "solution")
"""Names of columns that are the answer, so that a label beside them is only a note."""
_SUMMARY_NAMES = ("summary", "highlight", "abstract", "tldr", "headline")
_DOCUMENT_NAMES = ("dialogue", "document", "article", "text", "content", "report", "body", "transcript", "story")
_SYSTEM_NAMES = ("system", "systemprompt", "systemmessage")
_NUMBERING = re.compile(
    r"(row|line|sample|example|data)?_?(id|idx|index|number|nr|no)|.*_id|uuid|guid|hash|url|date|split|(unnamed: \d+)?"
)
"""Names of columns that number or date rows."""
_MAX_LABEL_CHARACTERS, _MAX_LABEL_SHARE = 40, 0.34
_FEW_ROWS = 8
"""Rows from which a column with one value does not count."""
_MAX_UNREAD = 6
"""Most columns that are listed as not read."""


@dataclass(frozen=True)
class ColumnRoles:
    """The columns that are read, and the reason."""

    user: str | tuple[str, ...] | None
    """Column of the question, or several."""
    assistant: str | None
    """Column of the answer."""
    text: str | None = None
    """Column of plain text, in place of both."""
    system: str | None = None
    task: str | None = None
    """Name of the task that the names of the columns show."""
    is_guess: bool = False
    reason: str = ""

    @property
    def as_columns(self) -> dict[str, str | tuple[str, ...]]:
        """Return the columns as `data.columns`."""
        parts = {"system": self.system, "user": self.user, "assistant": self.assistant, "text": self.text}
        return {
            # A name with a brace would be read as a format, so it is written as a list.
            part: (name,) if isinstance(name, str) and is_column_format(name) else name
            for part, name in parts.items()
            if name is not None
        }


def find_column_roles(rows: Sequence[Row]) -> ColumnRoles | None:
    """Return the columns of question and answer, or of plain text, or None if they are not clear.

    The reason lists the columns that are not read.
    """
    names = _list_names(rows)
    if not names:
        return None
    roles = _by_names(names) or _by_contents(names, rows)
    if roles is None and all(isinstance(row.get("text"), str) for row in rows):
        # `sft` reads these rows as plain text, so the user must see which columns that leaves out.
        roles = ColumnRoles(None, None, "text", is_guess=True, reason="a guess: plain text")
    unread = _list_unread(names, roles) if roles is not None else []
    if roles is None or not unread:
        return roles
    more = f" and {len(unread) - _MAX_UNREAD} more" if len(unread) > _MAX_UNREAD else ""
    return replace(roles, reason=f"{roles.reason}; not read: {', '.join(unread[:_MAX_UNREAD])}{more}")


def _list_unread(names: Sequence[str], roles: ColumnRoles) -> list[str]:
    """Return the columns with contents that these roles leave out; numbering does not count."""
    user = (roles.user,) if isinstance(roles.user, str) else roles.user or ()
    read = {*user, roles.assistant, roles.text, roles.system}
    return [name for name in names if name not in read and not _is_numbering(name)]


def _is_numbering(name: str) -> bool:
    """Return whether a column numbers or dates rows, by its name."""
    return _NUMBERING.fullmatch(name.strip().lower()) is not None


def _list_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of all columns in their order."""
    return [*dict.fromkeys(name for row in rows for name in row)]


def _by_names(names: Sequence[str]) -> ColumnRoles | None:
    """Return the columns if their names say what they contain."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(normalize_column_name(name), name)

    def pick(candidates: Sequence[str], *taken: str | None) -> str | None:
        known = (by_name.get(normalize_column_name(name)) for name in candidates)
        return next((name for name in known if name is not None and name not in taken), None)

    system, reason = pick(_SYSTEM_NAMES), "by their names"
    question, answer = pick(_QUESTION_NAMES), pick(_ANSWER_NAMES)
    context = pick(_CONTEXT_NAMES, question)
    if context and question and answer:
        return ColumnRoles((context, question), answer, system=system, task="reading", reason=reason)
    summary = pick(_SUMMARY_NAMES)
    document = pick(_DOCUMENT_NAMES, summary)
    if summary and document:
        return ColumnRoles(document, summary, system=system, task="summary", reason=reason)
    label = pick(_LABEL_NAMES)
    text = pick(_TEXT_NAMES, label)
    pair = guess_pair(names)
    if label and text and pair in (None, (text, label)):
        reply = pick(_REPLY_NAMES, text, label)
        if reply is not None:
            reason = f"a guess: {reply} is the answer to {text}"
            return ColumnRoles(text, reply, system=system, is_guess=True, reason=reason)
        return ColumnRoles(text, label, system=system, task="classification", reason=reason)
    if pair is None:
        return None
    is_translation = normalize_column_name(pair[0]) not in ("question", "prompt", "input") and _are_languages(pair)
    if is_translation:
        reason = f"by their names, but the direction from {pair[0]} to {pair[1]} is a guess"
    return ColumnRoles(
        *pair, system=system, task="translation" if is_translation else None, is_guess=is_translation, reason=reason
    )


def _are_languages(pair: tuple[str, str]) -> bool:
    """Return whether both columns are named after languages."""
    return guess_pair([*pair], languages_only=True) is not None


def _by_contents(names: Sequence[str], rows: Sequence[Row]) -> ColumnRoles | None:
    """Return the columns by their contents, which is a guess."""
    texts = {name: _read_texts(name, rows) for name in names if not _is_numbering(name)}
    full = [name for name, values in texts.items() if len(values) >= 0.9 * len(rows)]
    # A column with one value in all rows, such as the source, is neither a question nor an answer.
    columns = [name for name in full if len(rows) < _FEW_ROWS or len(set(texts[name])) > 1] or full
    if len(columns) == 1:
        if any(isinstance(row.get(name), list | dict) for row in rows for name in texts):
            return None
        return ColumnRoles(None, None, columns[0], is_guess=True, reason="a guess: it is the only column of text")
    if len(columns) != 2:
        return None
    first, second = columns
    labels = [name for name in columns if _has_labels(texts[name])]
    if len(labels) == 1:
        other = second if labels[0] == first else first
        reason = "a guess: few short values are labels"
        return ColumnRoles(other, labels[0], task="classification", is_guess=True, reason=reason)
    languages = [{share.language for share in measure_languages(texts[name])} for name in columns]
    if all(languages) and not languages[0] & languages[1]:
        reason = f"a guess: two languages, from {first} to {second}"
        return ColumnRoles(first, second, task="translation", is_guess=True, reason=reason)
    return ColumnRoles(first, second, is_guess=True, reason="a guess: the first column is the question")


def _read_texts(name: str, rows: Sequence[Row]) -> list[str]:
    """Return the texts and numbers of a column."""
    values = (row.get(name) for row in rows)
    return [str(value) for value in values if isinstance(value, str | int | float) and str(value).strip()]


def _has_labels(values: Sequence[str]) -> bool:
    """Return whether the values of a column are few and short."""
    distinct = set(values)
    is_short = max(map(len, distinct)) <= _MAX_LABEL_CHARACTERS
    return is_short and 2 <= len(distinct) <= _MAX_LABEL_SHARE * len(values)
