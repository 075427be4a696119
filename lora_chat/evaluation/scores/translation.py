"""BLEU and chrF by sacrebleu, as statistics per sentence whose sums give its corpus figures."""

import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lora_chat.evaluation.scores.text import MAX_COMPARED
from lora_chat.evaluation.scores.totals import divide

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_ORDERS = 4
"""Longest n-gram of BLEU, in tokens."""
_CHARACTER_ORDERS = 6
"""Longest n-gram of chrF, in characters."""
_BETA_SQUARED = 4
"""Weight of recall against precision in chrF2."""
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
_OTHER_UNSPACED = re.compile(r"[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff]")
_MIN_SHARE = 0.1
"""Share of characters from which a script decides on the tokenizer."""


def choose_tokenizer(references: Iterable[str]) -> str:
    """Return the tokenizer of sacrebleu for the script of the references.

    Chinese gets `zh`. Japanese gets `ja-mecab` if MeCab is installed, otherwise `char`. Thai, Lao, Khmer, Burmese and
    Tibetan get `char`, and all others `13a`.
    """
    text = "".join(reference[:MAX_COMPARED] for reference in references)
    length = len("".join(text.split())) * _MIN_SHARE
    kana, han, other = (len(pattern.findall(text)) for pattern in (_KANA, _HAN, _OTHER_UNSPACED))
    if kana and kana + han >= length and kana * 10 >= han:
        return "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"
    if han and han >= length:
        return "zh"
    return "char" if other and other >= length else "13a"


def bleu_statistics(reference: str, reply: str, tokenizer: str) -> list[float]:
    """Return the lengths of reply and reference in tokens, the matches of 1 to 4 tokens, and the n-grams of the reply.

    The order is that of sacrebleu's own statistics.
    """
    score = _bleu(tokenizer).sentence_score(reply[:MAX_COMPARED], [reference[:MAX_COMPARED]])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def bleu(totals: "Array") -> "Array":
    """Return BLEU, 0 to 100, of summed statistics (..., 10), with the exponential smoothing of sacrebleu."""
    import numpy as np

    reply, reference = totals[..., 0], totals[..., 1]
    matches, ngrams = totals[..., 2 : 2 + _ORDERS], totals[..., 2 + _ORDERS :]
    # Each order without a match halves the assumed number of matches again.
    assumed = 0.5 ** np.cumsum(matches == 0, axis=-1)
    precisions = divide(np.where(matches == 0, assumed, matches), ngrams)
    is_zero = (matches.sum(axis=-1) == 0) | (ngrams == 0).any(axis=-1)
    logs = np.log(np.where(precisions > 0, precisions, 1.0)).mean(axis=-1)
    penalty = np.exp(np.minimum(0.0, 1 - divide(reference, np.maximum(reply, 1))))
    result: Array = np.where(is_zero, 0.0, 100 * penalty * np.exp(logs))
    return result


def chrf_statistics(reference: str, reply: str) -> list[float]:
    """Return the n-grams of the reply and of the reference and their matches, for 1 to 6 characters."""
    from sacrebleu import extract_char_ngrams

    reference, reply = reference[:MAX_COMPARED], reply[:MAX_COMPARED]
    statistics: list[float] = []
    for order in range(1, _CHARACTER_ORDERS + 1):
        predicted, wanted = extract_char_ngrams(reply, order), extract_char_ngrams(reference, order)
        count = predicted.total() if wanted else 0  # as sacrebleu counts
        statistics += [count, wanted.total(), (predicted & wanted).total()]
    return statistics


def chrf(totals: "Array") -> "Array":
    """Return chrF2, 0 to 100, of summed statistics (..., 18)."""
    predicted, wanted, matches = totals[..., 0::3], totals[..., 1::3], totals[..., 2::3]
    is_counted = (predicted > 0) & (wanted > 0)
    orders = is_counted.sum(axis=-1).astype(float)
    precision = divide((divide(matches, predicted) * is_counted).sum(axis=-1), orders)
    recall = divide((divide(matches, wanted) * is_counted).sum(axis=-1), orders)
    return 100 * divide((1 + _BETA_SQUARED) * precision * recall, _BETA_SQUARED * precision + recall)


@cache
def _bleu(tokenizer: str) -> Any:
    """Return sacrebleu's BLEU; the effective order only silences its warning and changes no statistic."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True)
