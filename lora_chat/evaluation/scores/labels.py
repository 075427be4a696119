"""Accuracy, precision, recall and F1 of labels, and the confusion matrix."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from lora_chat.evaluation.scores.text import is_written_without_spaces, normalize_answer
from lora_chat.evaluation.scores.totals import divide

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MAX_LABELS = 40
"""Most classes of a task of labels."""
_NEGATION = re.compile(r"(?:\b(?:not|no|non|never|isn't|isn’t|neither)[\s-]+|[不非没無])\Z")


def find_labels(references: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct references in the normal form of answers, sorted."""
    return tuple(sorted(set(map(normalize_answer, references))))


def read_label(reply: str, labels: tuple[str, ...]) -> int | None:
    """Return the index of the label that a reply gives; None for other replies.

    The reply is a label, or names exactly one as whole words and not after a negation. Of labels that contain each
    other, such as `positive` and `very positive`, the longest counts.
    """
    text = normalize_answer(reply)
    if text in labels:
        return labels.index(text)
    matches = list(_label_pattern(labels).finditer(text))
    names = {match[0] for match in matches}
    if len(names) != 1 or any(_NEGATION.search(text[max(0, m.start() - 12) : m.start()]) for m in matches):
        return None
    return labels.index(names.pop())


def label_statistics(reference: str, reply: str, labels: tuple[str, ...]) -> list[float]:
    """Return for each class whether the reply is right, whether the reference is in it and whether the reply is."""
    wanted, replied = labels.index(normalize_answer(reference)), read_label(reply, labels)
    hits, wanted_counts, replied_counts = ([0.0] * len(labels) for _ in range(3))
    wanted_counts[wanted] = 1.0
    if replied is not None:
        replied_counts[replied] = 1.0
        hits[wanted] = float(replied == wanted)
    return [*hits, *wanted_counts, *replied_counts]


def accuracy(totals: "Array") -> "Array":
    """Return the share of right replies of summed statistics (..., 3 classes)."""
    hits, wanted, _ = _split(totals)
    return divide(hits.sum(axis=-1), wanted.sum(axis=-1))


def class_precision(totals: "Array") -> "Array":
    """Return the precision of each class; 0 for a class that no reply names."""
    hits, _, replied = _split(totals)
    return divide(hits, replied)


def class_recall(totals: "Array") -> "Array":
    """Return the recall of each class."""
    hits, wanted, _ = _split(totals)
    return divide(hits, wanted)


def class_f1(totals: "Array") -> "Array":
    """Return the F1 of each class."""
    hits, wanted, replied = _split(totals)
    return divide(2 * hits, wanted + replied)


def macro(totals: "Array", per_class: "Array") -> "Array":
    """Return the mean (...) of figures per class (..., classes) over the classes that the references have."""
    _, wanted, _ = _split(totals)
    is_present = wanted > 0
    return divide((per_class * is_present).sum(axis=-1), is_present.sum(axis=-1).astype(float))


def macro_precision(totals: "Array") -> "Array":
    """Return the mean precision of the classes."""
    return macro(totals, class_precision(totals))


def macro_recall(totals: "Array") -> "Array":
    """Return the mean recall of the classes."""
    return macro(totals, class_recall(totals))


def macro_f1(totals: "Array") -> "Array":
    """Return the mean F1 of the classes."""
    return macro(totals, class_f1(totals))


def confusion_matrix(references: Sequence[str], replies: Sequence[str], labels: tuple[str, ...]) -> list[list[int]]:
    """Return the counts (classes, classes + 1) of reference and reply; the last column counts other replies."""
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for reference, reply in zip(references, replies, strict=True):
        replied = read_label(reply, labels)
        counts[labels.index(normalize_answer(reference))][len(labels) if replied is None else replied] += 1
    return counts


def _split(totals: "Array") -> "tuple[Array, Array, Array]":
    """Return hits, references and replies of each class."""
    classes = totals.shape[-1] // 3
    return totals[..., :classes], totals[..., classes : 2 * classes], totals[..., 2 * classes :]


@lru_cache(maxsize=8)
def _label_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern of a label in a text, the longest first."""
    parts = [
        re.escape(label) if is_written_without_spaces(label) else rf"(?<!\w){re.escape(label)}(?!\w)"
        for label in sorted(labels, key=len, reverse=True)
        if label
    ]
    return re.compile("|".join(parts) or r"(?!)")
