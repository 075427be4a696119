"""Exact match, contains and token F1 of an answer."""

import re
from collections import Counter

from lora_chat.evaluation.scores.text import is_written_without_spaces, normalize_answer, split_answer_words

_WORD = re.compile(r"\w")


def exact_match(reference: str, reply: str) -> bool:
    """Return whether the reply equals the reference in the normal form of answers."""
    return normalize_answer(reference) == normalize_answer(reply)


def contains(reference: str, reply: str) -> bool:
    """Return whether the reference occurs in the reply, as whole words if its script has spaces."""
    needle, text = normalize_answer(reference), normalize_answer(reply)
    if not needle:
        return not text
    if is_written_without_spaces(needle):
        return needle in text
    start = text.find(needle)
    while start >= 0:
        end = start + len(needle)
        if not _WORD.match(text[start - 1 : start]) and not _WORD.match(text[end : end + 1]):
            return True
        start = text.find(needle, start + 1)
    return False


def token_f1(reference: str, reply: str) -> float:
    """Return the harmonic mean of precision and recall of the words, as in SQuAD 2.0."""
    wanted, predicted = split_answer_words(reference), split_answer_words(reply)
    if not wanted or not predicted:
        return float(wanted == predicted)
    common = (Counter(wanted) & Counter(predicted)).total()
    return 2 * common / (len(wanted) + len(predicted))
