"""Words that announce a value, matched as whole words only, also inside names such as `customerPhone`."""

import re
from collections.abc import Iterable

_WORD_START = r"(?:(?<![^\W\d_])|(?-i:(?<=[a-z]{2})(?=[A-Z])))"
"""Pattern of a place without a letter before it, or before a capital inside a name. `iPhone` is one word."""
_WORD_END = r"(?:(?![^\W\d_])|(?-i:(?<=[a-z])(?=[A-Z])))"
_WITHOUT_BLANKS = re.compile("[\u0900-\u0dff\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Pattern of the letters of scripts that do not divide words by blanks, or that write vowels as separate marks."""
_WORD = re.compile(r"(?:[A-ZÀ-Þ](?=[a-zß-ÿ]))?[a-zß-ÿ]+|[A-ZÀ-Þ]+(?![a-zß-ÿ])|[^\W\d_A-Za-zÀ-ÿ]+")


def whole_words(patterns: Iterable[str]) -> str:
    """Return a pattern of these words. Letters that touch a word make another word, except across `_` and capitals."""
    bounded: list[str] = []
    free: list[str] = []
    for pattern in patterns:
        (free if _WITHOUT_BLANKS.search(pattern) else bounded).append(pattern)
    parts = [f"{_WORD_START}(?:{'|'.join(bounded)}){_WORD_END}"] if bounded else []
    return f"(?:{'|'.join([*parts, *free])})"


def compile_words(patterns: Iterable[str]) -> re.Pattern[str]:
    """Return the compiled pattern of these words, regardless of case."""
    return re.compile(whole_words(patterns), re.IGNORECASE)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case; names such as `phoneModel` are several words."""
    return [word.lower() for word in _WORD.findall(text)]
