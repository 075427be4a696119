"""The kinds of held-out replies and the metrics that fit each, and which data a metric needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.evaluation.measurement import ReplyItem
from lora_chat.evaluation.reply_scores import find_references, read_labels
from lora_chat.evaluation.scores.json_texts import is_json_structure
from lora_chat.evaluation.scores.labels import MAX_LABELS
from lora_chat.evaluation.scores.numbers import SlowPatternError, is_numeric_answer, numeric_match
from lora_chat.evaluation.scores.text import is_written_without_spaces, normalize_answer, split_words
from lora_chat.evaluation.scores.translation import choose_tokenizer

_MOST = 0.8
"""Share of the references that must be of a kind."""
_MIN_LABELED = 8
"""Smallest number of references in which labels are recognised."""
_REPETITIONS = 3
"""Smallest mean number of references of each label."""
_MAX_LABEL_LENGTH = 40
"""Most characters of a label."""
_SHORT_WORDS = 6
"""Most words of a short answer."""
_SHORT_CHARACTERS = 12
"""Most characters of a short answer in a script without spaces."""


@dataclass(frozen=True)
class ReplyKind:
    """A kind of replies: the metrics that fit it, and the reason for them."""

    metrics: tuple[str, ...]
    reason: str


REPLY_KINDS = {
    "calls": ReplyKind(("tool_calls",), "references call tools"),
    "json": ReplyKind(("json_match", "json_valid"), "references are JSON"),
    "labels": ReplyKind(("accuracy", "macro_f1"), "references are a few labels that repeat"),
    "numbers": ReplyKind(("numeric_match",), "references end with a number"),
    "short": ReplyKind(("exact_match", "token_f1"), "references are short answers"),
    "unspaced": ReplyKind(("chrf", "bleu"), "references are longer texts in a script without spaces"),
    "free": ReplyKind(("rougeL", "chrf"), "references are longer texts"),
}
"""Every kind of replies. Texts are of the first kind that fits; calls are a kind beside it."""


def find_kinds(items: Sequence[ReplyItem], number_pattern: str | None) -> list[str]:
    """Return the kinds of the references; none for plain text, because a continuation has no right reply."""
    items = [item for item in items if not item.is_text]
    references = find_references(items)
    calls = len(items) - len(references)
    kinds = [_find_text_kind(references, number_pattern)] if references else []
    if not calls:
        return kinds
    return ["calls", *kinds] if calls >= len(references) else [*kinds, "calls"]


def _find_text_kind(references: Sequence[str], number_pattern: str | None) -> str:
    """Return the kind of references with text."""
    if number_pattern is not None:
        return "numbers"
    if _most(list(map(is_json_structure, references))):
        return "json"
    if _are_labels(references):
        return "labels"
    if _most(list(map(is_numeric_answer, references))):
        return "numbers"
    if _most(list(map(_is_short, references))):
        return "short"
    return "free" if choose_tokenizer(references) == "13a" else "unspaced"


def lacks_data(name: str, items: Sequence[ReplyItem], number_pattern: str | None) -> str | None:
    """Return the reason why a metric cannot be computed on these items, or None."""
    references = find_references(items)
    if name == "tool_calls":
        return None if any(item.calls for item in items) else "no reference calls a tool"
    if not references:
        return "no reference is a text"
    if name == "json_match" and not any(map(is_json_structure, references)):
        return "no reference is JSON"
    if name == "numeric_match":
        return _lacks_numbers(references, number_pattern)
    if (name == "accuracy" or name.startswith("macro_")) and read_labels(items) is None:
        return f"there are more than {MAX_LABELS} different references"
    return None


def _lacks_numbers(references: Sequence[str], pattern: str | None) -> str | None:
    """Return the reason why numbers cannot be compared, or None."""
    try:
        if any(numeric_match(reference, reference, pattern)[1] for reference in references):
            return None
    except SlowPatternError as error:
        return str(error)
    return "the pattern matches no reference" if pattern else "no reference has a number"


def _most(values: Sequence[bool]) -> bool:
    return sum(values) >= _MOST * len(values)


def _are_labels(references: Sequence[str]) -> bool:
    """Return whether references are a few short labels, each of which repeats."""
    distinct = set(map(normalize_answer, references))
    return (
        len(references) >= _MIN_LABELED
        and 2 <= len(distinct) <= min(MAX_LABELS, len(references) // _REPETITIONS)
        and all(0 < len(label) <= _MAX_LABEL_LENGTH for label in distinct)
    )


def _is_short(reference: str) -> bool:
    """Return whether a reference is a short answer."""
    words = len(split_words(reference))
    return words <= (_SHORT_CHARACTERS if is_written_without_spaces(reference) else _SHORT_WORDS)
