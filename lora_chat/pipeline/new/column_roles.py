"""The columns of a table that become messages: by their names, otherwise by their contents, which is a guess."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_chat.config.columns import is_column_format
from lora_chat.data.parsing.column_guess import guess_pair, normalize_column_name
from lora_chat.pipeline.new.languages import measure_languages

Row = Mapping[str, object]

_CONTEXT_NAMES = ("context", "passage", "article", "document", "paragraph", "text")
_QUESTION_NAMES = ("question", "query")
_ANSWER_NAMES = ("answer", "answertext")
_LABEL_NAMES = ("label", "class", "category", "intent", "sentiment", "labeltext", "labelname", "target", "tag")
_TEXT_NAMES = ("text", "sentence", "content", "review", "utterance", "message", "tweet", "comment", "body", "title")
_SUMMARY_NAMES = ("summary", "highlight", "abstract", "tldr", "headline")
_DOCUMENT_NAMES = ("dialogue", "document", "article", "text", "content", "report", "body", "transcript", "story")
_SYSTEM_NAMES = ("system", "systemprompt", "systemmessage")
_NUMBERING = re.compile(
    r"(row|line|sample|example|data)?_?(id|idx|index|number|nr|no)|.*_id|uuid|guid|hash|url|date|split"
)
"""Names of columns that number or date rows."""
_MAX_LABEL_CHARACTERS, _MAX_LABEL_SHARE = 40, 0.34


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
    """Return the columns of question and answer, or of plain text, or None if they are not clear."""
    names = _list_names(rows)
    if not names:
        return None
    return _by_names(names) or _by_contents(names, rows)


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
    if label and text:
        return ColumnRoles(text, label, system=system, task="classification", reason=reason)
    pair = guess_pair(names)
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
    texts = {name: _read_texts(name, rows) for name in names if not _NUMBERING.fullmatch(name.strip().lower())}
    columns = [name for name, values in texts.items() if len(values) >= 0.9 * len(rows)]
    if len(columns) == 1:
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
