"""Slurs, insults, threats and strong profanity, by word list; what is meant, no list can tell."""

import re
from collections.abc import Iterator

import lora_chat.audit.checks.abusive_words as lists
from lora_chat.audit.report import Match

_WORDS = {
    **dict.fromkeys(lists.PROFANITY.split(), "profanity"),
    **dict.fromkeys(lists.INSULTS.split(), "insult"),
    **dict.fromkeys(lists.SLURS.split(), "slur"),
}
_PHRASES = {
    **dict.fromkeys(lists.THREATS.strip().replace("\n", "|").split("|"), "threat"),
    **dict.fromkeys(lists.INSULTING_PHRASES.strip().replace("\n", "|").split("|"), "insult"),
}
_COMMON = frozenset({"going", "hope", "piece"})
_TELLING_WORDS = frozenset(
    max(sorted(set(re.split("[ ']", phrase)) - _COMMON), key=len).encode() for phrase in (*_WORDS, *_PHRASES)
)
"""Without one of these, no word or phrase of the lists can be there."""
_ANY = re.compile(
    rf"(?<!\w)(?:{'|'.join(sorted(map(re.escape, (*_WORDS, *_PHRASES)), key=lambda w: (-len(w), w)))})(?!\w)"
)
_ANY_UNSPACED = re.compile("|".join(sorted(lists.UNSPACED.split())))
_HIDDEN = re.compile("[*@$#!0134578][a-z]")
_HIDDEN_WORD = re.compile(r"(?<![\w*@$#])(?=\w{0,20}[*@$#!0134578])[a-z][a-z*@$#!0134578]{2,18}[a-z](?![\w*@$#])")
_LEET = {
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
_BY_LENGTH = {n: [word for word in sorted(_WORDS) if word.isascii() and len(word) == n] for n in range(3, 21)}
_BREAKS = bytes(b if chr(b).isalnum() or b > 127 else 32 for b in range(256))

_FOREIGN_BREAKS = "—–“”„‘’«»…¿¡，。！？、：；"


def find_abuse(text: str) -> Iterator[Match]:
    """Words of the list with word borders, and English ones with letters replaced, such as `sh*thead`."""
    lower = text.lower()
    if len(lower) != len(text):  # İ becomes two characters, and places would shift
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    if not may_hold_abuse(lower):
        return
    for found in _ANY.finditer(lower):
        kind = _WORDS.get(found[0]) or _PHRASES[found[0]]
        yield Match("abusive_language", kind, found.start(), found.end())
    for found in _ANY_UNSPACED.finditer(lower):
        yield Match("abusive_language", "insult", found.start(), found.end())
    for found in _HIDDEN_WORD.finditer(lower):
        word = _unhide(found[0])
        if word:
            yield Match("abusive_language", _WORDS[word], found.start(), found.end())


def may_hold_abuse(lower: str) -> bool:
    """Cheap and never wrongly False; for text in lower case."""
    if not lower.isascii():
        if _ANY_UNSPACED.search(lower):
            return True
        for mark in _FOREIGN_BREAKS:
            lower = lower.replace(mark, " ")
    if not _TELLING_WORDS.isdisjoint(lower.encode("utf-8", "replace").translate(_BREAKS).split()):
        return True
    return _HIDDEN.search(lower) is not None and _HIDDEN_WORD.search(lower) is not None


def _unhide(word: str) -> str | None:
    """The word of the list that a disguised one spells, if at least two of its letters stand there undisguised."""
    if sum(c.isalpha() for c in word) < 2 or word.isalpha():
        return None
    letters = [_LEET.get(c, c) for c in word]
    for known in _BY_LENGTH.get(len(word), ()):
        if all(c in said or not said for c, said in zip(known, letters, strict=True)):
            return known
    return None
