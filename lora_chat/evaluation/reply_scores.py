"""Statistics of the replies of a model, from the scores of each reply.

A reference that is tool calls counts only for the match of tool calls, because it has no text to compare.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from lora_chat.evaluation.intervals import Statistics
from lora_chat.evaluation.measurement import Measurement, ReplyItem
from lora_chat.evaluation.scores.labels import MAX_LABELS, find_labels, label_statistics, read_label
from lora_chat.evaluation.scores.numbers import SlowPatternError, numeric_match
from lora_chat.evaluation.scores.text import normalize_answer
from lora_chat.evaluation.scores.tool_calls import tool_call_match
from lora_chat.evaluation.scores.translation import bleu_statistics, choose_tokenizer, chrf_statistics

logger = logging.getLogger(__name__)

_MAX_SLOW_SEARCHES = 5
"""Number of replies on which a pattern may be stopped before its metric is left out."""


def find_references(items: Sequence[ReplyItem]) -> list[str]:
    """Return the references with text."""
    return [item.reference for item in items if not item.calls]


def score_each(score: Callable[[str, str], float]) -> Callable[[Measurement], Statistics | None]:
    """Return a function that gives the value of each reply, by a score of reference and reply."""
    return score_counted(lambda reference, reply: (float(score(reference, reply)), 1.0))


def score_counted(score: Callable[[str, str], tuple[float, float]]) -> Callable[[Measurement], Statistics | None]:
    """Return a function that gives the value of each reply and whether it counts."""

    def score_replies(measured: Measurement) -> Statistics | None:
        statistics = _score_texts(measured, lambda reference, reply: list(score(reference, reply)), 2)
        return statistics if statistics is not None and statistics[:, 1].any() else None

    return score_replies


def score_numbers(measured: Measurement, pattern: str) -> Statistics | None:
    """Return whether the group of the pattern equals that of the reference; None if the pattern is too slow."""
    slow: list[SlowPatternError] = []

    def score(reference: str, reply: str) -> list[float]:
        try:
            return list(numeric_match(reference, reply, pattern)) if len(slow) < _MAX_SLOW_SEARCHES else [0.0, 1.0]
        except SlowPatternError as error:
            slow.append(error)
            return [0.0, 1.0]

    statistics = _score_texts(measured, score, 2)
    if len(slow) == _MAX_SLOW_SEARCHES:
        logger.warning(f"numeric_match is left out: {slow[0]}.")
        return None
    return statistics if statistics is not None and statistics[:, 1].any() else None


def score_bleu(measured: Measurement) -> Statistics | None:
    """Return the statistics of BLEU of each reply, with the tokenizer for the script of the references."""
    tokenizer = choose_tokenizer(find_references(measured.items))
    return _score_texts(measured, lambda reference, reply: bleu_statistics(reference, reply, tokenizer), 10)


def score_chrf(measured: Measurement) -> Statistics | None:
    """Return the statistics of chrF of each reply."""
    return _score_texts(measured, chrf_statistics, 18)


def score_calls(measured: Measurement) -> Statistics | None:
    """Return whether each reply has the calls of its reference; None if no reference has calls."""
    if not any(item.calls for item in measured.items):
        return None
    pairs = zip(measured.items, measured.replies, strict=True)
    return np.array([[tool_call_match(item.calls, reply.content), 1] for item, reply in pairs], np.float64)


def score_labels(measured: Measurement) -> Statistics | None:
    """Return whether each reply gives the label of its reference."""
    labels = read_labels(measured.items)
    if labels is None:
        return None

    def score(reference: str, reply: str) -> list[float]:
        return [float(read_label(reply, labels) == labels.index(normalize_answer(reference))), 1.0]

    return _score_texts(measured, score, 2)


def score_label_classes(measured: Measurement) -> Statistics | None:
    """Return for each reply and class whether it is right, in the reference and in the reply."""
    labels = read_labels(measured.items)
    if labels is None:
        return None
    return _score_texts(measured, lambda reference, reply: label_statistics(reference, reply, labels), 3 * len(labels))


def read_labels(items: Sequence[ReplyItem]) -> tuple[str, ...] | None:
    """Return the distinct references; None if none exist or too many for labels."""
    labels = find_labels(find_references(items))
    return labels if 1 <= len(labels) <= MAX_LABELS else None


def _score_texts(measured: Measurement, score: Callable[[str, str], list[float]], width: int) -> Statistics | None:
    """Return the statistics of each reply, zeros where the reference is tool calls; None without other references."""
    pairs = list(zip(measured.items, measured.replies, strict=True))
    if all(item.calls for item, _ in pairs):
        return None
    zeros = [0.0] * width
    return np.array(
        [zeros if item.calls else score(item.reference, reply.content) for item, reply in pairs], np.float64
    )
