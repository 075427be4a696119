"""Slurs, insults, threats and strong profanity, found with a word list, which cannot know the intention.

`abusive_words.json` contains words and phrases that are abusive in nearly every context, in lower case. It leaves out
words that are also a name, an animal, a part of the body or a city in some language, mild words, and words of sex and
medicine.
"""

import re
from collections.abc import Iterator
from functools import cache

from pydantic import TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.audit.report import TextMatch
from lora_chat.config.base import NonEmptyStr, StrictModel

_COMMON_WORDS = frozenset({"going", "hope", "piece"})
"""Words of phrases that are too common to be indicators."""
_DISGUISE_HINT = re.compile("[*@$#!0134578][a-z]")
_DISGUISED_WORD = re.compile(r"(?<![\w*@$#])(?=\w{0,20}[*@$#!0134578])[a-z][a-z*@$#!0134578]{2,18}[a-z](?![\w*@$#])")
_LEET_LETTERS = {
    "0": "o",
    "1": "il",
    "3": "e",
    "4": "a",
    "5": "s",
    "7": "t",
    "8": "b",
    "@": "a",
    "$": "s",
    "!": "il",
    "*": "",
    "#": "",
}
"""Letters that a character can replace. An empty string means any letter."""
_SEPARATORS_TO_SPACES = bytes(b if chr(b).isalnum() or b > 127 else 32 for b in range(256))
_UNICODE_PUNCTUATION = "—–“”„‘’«»…¿¡，。！？、：；"


class _WordList(StrictModel):
    """The content of `abusive_words.json`: words and phrases by kind of abuse."""

    single_words: dict[NonEmptyStr, tuple[NonEmptyStr, ...]]
    phrases: dict[NonEmptyStr, tuple[NonEmptyStr, ...]]
    unspaced_insults: tuple[NonEmptyStr, ...]
    """Insults in scripts without spaces between words."""


class _AbuseDetector:
    """The word list, compiled."""

    def __init__(self, word_list: _WordList) -> None:
        self.kind_by_word = _invert(word_list.single_words)
        self.kind_by_phrase = self.kind_by_word | _invert(word_list.phrases)
        longest_first = sorted(map(re.escape, self.kind_by_phrase), key=lambda w: (-len(w), w))
        self.listed_pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)")
        self.unspaced_pattern = re.compile("|".join(sorted(word_list.unspaced_insults)))
        self.indicator_words = frozenset(
            max(sorted(set(re.split("[ ']", phrase)) - _COMMON_WORDS), key=len).encode()
            for phrase in self.kind_by_phrase
        )
        """The longest word of each phrase. A text without any of them cannot contain a phrase."""
        self.ascii_words_by_length = {
            n: [word for word in sorted(self.kind_by_word) if word.isascii() and len(word) == n] for n in range(3, 21)
        }


def _invert(phrases_by_kind: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the kind of each phrase."""
    return {phrase: kind for kind, phrases in phrases_by_kind.items() for phrase in phrases}


@cache
def load_abuse_detector() -> _AbuseDetector:
    """Return the compiled word list."""
    return _AbuseDetector(load_data_file("checks", "abusive_words.json", TypeAdapter(_WordList)))


def find_abuse(text: str) -> Iterator[TextMatch]:
    """Yield the listed words with word borders, and English ones with letters replaced, such as `sh*thead`."""
    lower = text.lower()
    if len(lower) != len(text):  # İ becomes two characters, which would shift the offsets
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    if not may_contain_abuse(lower):
        return
    detector = load_abuse_detector()
    for match in detector.listed_pattern.finditer(lower):
        yield TextMatch("abusive_language", detector.kind_by_phrase[match[0]], match.start(), match.end())
    for match in detector.unspaced_pattern.finditer(lower):
        yield TextMatch("abusive_language", "insult", match.start(), match.end())
    for match in _DISGUISED_WORD.finditer(lower):
        word = _decode_disguised_word(match[0])
        if word:
            yield TextMatch("abusive_language", detector.kind_by_word[word], match.start(), match.end())


def may_contain_abuse(lower: str) -> bool:
    """Return False only if a text in lower case cannot contain abuse. This is cheaper than `find_abuse`."""
    detector = load_abuse_detector()
    if not lower.isascii():
        if detector.unspaced_pattern.search(lower):
            return True
        for mark in _UNICODE_PUNCTUATION:
            lower = lower.replace(mark, " ")
    encoded_words = lower.encode("utf-8", "replace").translate(_SEPARATORS_TO_SPACES).split()
    if not detector.indicator_words.isdisjoint(encoded_words):
        return True
    return _DISGUISE_HINT.search(lower) is not None and _DISGUISED_WORD.search(lower) is not None


def _decode_disguised_word(word: str) -> str | None:
    """Return the listed word that a disguised word spells, if at least two of its letters are not replaced."""
    if sum(c.isalpha() for c in word) < 2 or word.isalpha():
        return None
    letters = [_LEET_LETTERS.get(c, c) for c in word]
    for listed_word in load_abuse_detector().ascii_words_by_length.get(len(word), ()):
        if all(c in alternatives or not alternatives for c, alternatives in zip(listed_word, letters, strict=True)):
            return listed_word
    return None
