"""Numeric match: the last number of a text, or the group of a pattern, against the reference."""

from functools import cache
from typing import Any

from lora_chat.evaluation.scores.number_text import find_last_number, is_single_number
from lora_chat.evaluation.scores.text import normalize_answer

FINAL_ANSWER_MARK = "####"
"""Mark of GSM8K before the final answer."""
_BOX = "\\boxed{"
_MAX_TEXT = 20_000
"""Characters at the end of a text in which a number is searched."""
_TIMEOUT = 0.2
"""Most seconds that a pattern may search one text."""


class SlowPatternError(Exception):
    """A pattern that takes too long on a text."""


def numeric_match(reference: str, reply: str, pattern: str | None = None) -> tuple[float, float]:
    """Return whether the last numbers are equal, and whether the reference has one.

    With a pattern, its last match is compared: as a number if the group of the reference is one, otherwise as text.
    """
    wanted, replied_text = find_answer(reference, pattern), find_answer(reply, pattern)
    if wanted is None:
        return 0.0, 0.0
    number = find_last_number(wanted)
    if number is None:
        is_text = pattern is not None and bool(normalize_answer(wanted))
        is_equal = is_text and replied_text is not None and normalize_answer(wanted) == normalize_answer(replied_text)
        return float(is_equal), float(is_text)
    replied = find_last_number(replied_text) if replied_text is not None else None
    return float(replied is not None and number.equals(replied)), 1.0


def is_numeric_answer(text: str) -> bool:
    """Return whether a text is a number, or has one after `####` or in a box."""
    answer = find_answer(text, None) or ""
    is_marked = answer != text[-_MAX_TEXT:]
    return find_last_number(answer) is not None if is_marked else is_single_number(answer)


def find_answer(text: str, pattern: str | None) -> str | None:
    """Return the part of a text with the answer; None if the pattern does not match.

    Without a pattern this is the part after the last `####`, the content of the last \\boxed{}, or the whole text.
    """
    text = text[-_MAX_TEXT:]
    if pattern is not None:
        return _search_pattern(pattern, text)
    if FINAL_ANSWER_MARK in text:
        return text.rpartition(FINAL_ANSWER_MARK)[2]
    return _content_of_box(text.rpartition(_BOX)[2]) if _BOX in text else text


def _search_pattern(pattern: str, text: str) -> str | None:
    """Return the group of the last match."""
    last = None
    try:
        for match in _compile(pattern).finditer(text, timeout=_TIMEOUT):
            last = match
    except TimeoutError:
        raise SlowPatternError(
            f"the pattern {pattern!r} takes more than {_TIMEOUT} seconds on a text of {len(text)} characters"
        ) from None
    return None if last is None else last[1]


def _content_of_box(text: str) -> str:
    """Return the text before the brace that closes a box."""
    depth = 1
    for index, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:index]
    return text


@cache
def _compile(pattern: str) -> Any:
    """Return a pattern of the module regex, whose searches have a time limit."""
    import regex

    return regex.compile(pattern)
