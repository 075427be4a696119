"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), as F-measures without stemming.

English figures equal those of the package rouge_score 0.1.2, whose tokenizer drops every other script.
"""

from collections import Counter
from collections.abc import Sequence

from lora_chat.evaluation.scores.text import split_words


def rouge_n(reference: str, reply: str, order: int) -> float:
    """Return the F-measure of the n-grams of this order."""
    wanted, predicted = (Counter(_ngrams(split_words(text), order)) for text in (reference, reply))
    return _f_measure((wanted & predicted).total(), wanted.total(), predicted.total())


def rouge_1(reference: str, reply: str) -> float:
    """Return the F-measure of the words."""
    return rouge_n(reference, reply, 1)


def rouge_2(reference: str, reply: str) -> float:
    """Return the F-measure of the pairs of words."""
    return rouge_n(reference, reply, 2)


def rouge_l(reference: str, reply: str) -> float:
    """Return the F-measure of the longest common subsequence of words."""
    wanted, predicted = split_words(reference), split_words(reply)
    return _f_measure(common_subsequence_length(wanted, predicted), len(wanted), len(predicted))


def common_subsequence_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Each bit of `row` is a position of the first sequence, so a step takes a few operations on one large integer
    (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    positions: dict[str, int] = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def _ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """Return all n-grams of this order."""
    return list(zip(*(words[start:] for start in range(order)), strict=False))


def _f_measure(common: int, wanted: int, predicted: int) -> float:
    """Return the harmonic mean of precision and recall, and 0 if nothing is in common."""
    return 2 * common / (wanted + predicted) if common else 0.0
