"""Slurs, insults, threats and strong profanity, by word list; what is meant, no list can tell."""

import re
from collections.abc import Iterator

import lora_chat.audit.checks.abusive_words as lists
from lora_chat.audit.report import TextMatch

_WORDS = {
    **dict.fromkeys(lists.PROFANITY.split(), "profanity"),
    **dict.fromkeys(lists.INSULTS.split(), "insult"),
    **dict.fromkeys(lists.SLURS.split(), "slur"),
}
_PHRASES = {
    **dict.fromkeys(lists.THREATS.strip().replace("\n", "|").split("|"), "threat"),
    **dict.fromkeys(lists.INSULTING_PHRASES.strip().replace("\n", "|").split("|"), "insult"),
}
_COMMON_WORDS = frozenset({"going", "hope", "piece"})
_INDICATOR_WORDS = frozenset(
    max(sorted(set(re.split("[ ']", phrase)) - _COMMON_WORDS), key=len).encode() for phrase in (*_WORDS, *_PHRASES)
)
"""Without one of these, no word or phrase of the lists can be there."""
_LISTED_PATTERN = re.compile(
    rf"(?<!\w)(?:{'|'.join(sorted(map(re.escape, (*_WORDS, *_PHRASES)), key=lambda w: (-len(w), w)))})(?!\w)"
)
_UNSPACED_PATTERN = re.compile("|".join(sorted(lists.UNSPACED.split())))
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
"""The letters that a character may stand for; any letter where there are none."""
_WORDS_BY_LENGTH = {n: [word for word in sorted(_WORDS) if word.isascii() and len(word) == n] for n in range(3, 21)}
_SEPARATORS_TO_SPACES = bytes(b if chr(b).isalnum() or b > 127 else 32 for b in range(256))

_UNICODE_PUNCTUATION = "—–“”„‘’«»…¿¡，。！？、：；"


def find_abuse(text: str) -> Iterator[TextMatch]:
    """Words of the list with word borders, and English ones with letters replaced, such as `sh*thead`."""
    lower = text.lower()
    if len(lower) != len(text):  # İ becomes two characters, and places would shift
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    if not may_hold_abuse(lower):
        return
    for found in _LISTED_PATTERN.finditer(lower):
        kind = _WORDS.get(found[0]) or _PHRASES[found[0]]
        yield TextMatch("abusive_language", kind, found.start(), found.end())
    for found in _UNSPACED_PATTERN.finditer(lower):
        yield TextMatch("abusive_language", "insult", found.start(), found.end())
    for found in _DISGUISED_WORD.finditer(lower):
        word = _decode_disguised_word(found[0])
        if word:
            yield TextMatch("abusive_language", _WORDS[word], found.start(), found.end())


def may_hold_abuse(lower: str) -> bool:
    """Cheap and never wrongly False; for text in lower case."""
    if not lower.isascii():
        if _UNSPACED_PATTERN.search(lower):
            return True
        for mark in _UNICODE_PUNCTUATION:
            lower = lower.replace(mark, " ")
    if not _INDICATOR_WORDS.isdisjoint(lower.encode("utf-8", "replace").translate(_SEPARATORS_TO_SPACES).split()):
        return True
    return _DISGUISE_HINT.search(lower) is not None and _DISGUISED_WORD.search(lower) is not None


def _decode_disguised_word(word: str) -> str | None:
    """The word of the list that a disguised one spells, if at least two of its letters stand there undisguised."""
    if sum(c.isalpha() for c in word) < 2 or word.isalpha():
        return None
    letters = [_LEET_LETTERS.get(c, c) for c in word]
    for known in _WORDS_BY_LENGTH.get(len(word), ()):
        if all(c in said or not said for c, said in zip(known, letters, strict=True)):
            return known
    return None
