"""Normal form and tokens of a text, in every script."""

import re
import string
import unicodedata
from functools import cache
from typing import Any

_KEPT_FORMS = ("<super>", "<sub>", "<fraction>")
"""Compatibility forms that NFKC would turn into plain digits, so that 2⁵ would equal 25."""
_SENTENCE_ENDS = ".。!?,،;؛:…、؟।۔"
_PAIRS = {
    '"': '"',
    "'": "'",
    "`": "`",
    "*": "*",
    "“": "”",
    "‘": "’",
    "«": "»",
    "„": "“",
    "「": "」",
    "『": "』",
    "(": ")",
}
"""Marks around a whole answer."""
_MAX_NESTED_MARKS = 8
"""Most marks around an answer that are removed one after the other."""
MAX_COMPARED = 20_000
"""Characters at the beginning of a text whose words and n-grams are compared, which bounds the time and memory."""
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize_form(text: str) -> str:
    """Return a text in the form NFKC, except for superscripts, subscripts and fractions such as ½."""
    if text.isascii():
        return text
    preserved = {c for c in set(text) if unicodedata.decomposition(c).startswith(_KEPT_FORMS)}
    if not preserved:
        return unicodedata.normalize("NFKC", text)
    parts = re.split(f"([{''.join(map(re.escape, preserved))}])", text)
    return "".join(part if part in preserved else unicodedata.normalize("NFKC", part) for part in parts)


def normalize_answer(text: str) -> str:
    """Return an answer in its normal form: NFKC, without case, with single spaces and without outer punctuation.

    Sentence marks at the end and pairs of quotes, brackets or Markdown marks around the whole are removed. Signs such
    as - and % and English articles stay.
    """
    text = unicodedata.normalize("NFC", " ".join(normalize_form(text).casefold().split()))
    for _ in range(_MAX_NESTED_MARKS):
        shorter = text.rstrip(_SENTENCE_ENDS + " ").lstrip("¿¡ ")
        if len(shorter) >= 2 and _PAIRS.get(shorter[0]) == shorter[-1]:
            shorter = shorter[1:-1].strip()
        if shorter == text or not shorter:
            break
        text = shorter
    return text


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters, marks and digits.

    In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) each character is a word.
    """
    words: list[str] = _word_pattern().findall(normalize_form(text[:MAX_COMPARED]).lower())
    return words


def split_answer_words(text: str) -> list[str]:
    """Return the words of an answer as SQuAD does: without case, punctuation and English articles.

    In scripts without spaces each character is a word.
    """
    text = normalize_form(text[:MAX_COMPARED]).lower()
    if text.isascii():
        text = text.translate(_without_ascii_punctuation())
    else:
        text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
        text = _unspaced_pattern().sub(r" \g<0> ", text)
    return _ARTICLES.sub(" ", text).split()


def is_written_without_spaces(text: str) -> bool:
    """Return whether a text has a character of a script without spaces between words."""
    return not text.isascii() and _unspaced_pattern().search(text) is not None


@cache
def _word_pattern() -> Any:
    """Return the pattern of a word."""
    import regex

    unspaced = _UNSPACED_SCRIPTS
    return regex.compile(rf"[{unspaced}]\p{{M}}*|(?:(?![{unspaced}])[\p{{L}}\p{{M}}\p{{N}}])+")


@cache
def _unspaced_pattern() -> Any:
    """Return the pattern of a character of a script without spaces, with its marks."""
    import regex

    return regex.compile(rf"[{_UNSPACED_SCRIPTS}]\p{{M}}*")


_UNSPACED_SCRIPTS = "".join(
    rf"\p{{{script}}}" for script in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
)


@cache
def _without_ascii_punctuation() -> dict[int, None]:
    """Return the translation that removes ASCII punctuation."""
    return dict.fromkeys(map(ord, string.punctuation))
