"""The languages of texts, by their scripts and by frequent words; a simple count that needs no model."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SCRIPTS = {
    "Japanese": "\u3040-\u30ff\u31f0-\u31ff",
    "Chinese": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
    "Korean": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff",
    "Hebrew": "\u0590-\u05ff",
    "Hindi": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Thai": "\u0e00-\u0e7f",
    "Georgian": "\u10a0-\u10ff",
    "Armenian": "\u0530-\u058f",
}
"""Letters of each script that belongs to one language, or whose languages are not told apart."""
_PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_LATIN_WORD = re.compile(r"[^\W\d_]+")
_LATIN_LETTER = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
_CODE_SIGN = re.compile(r"[<>{}\[\]();=/\\_|+*\d]")
_MAX_CODE_SHARE = 0.15
"""Share of signs and digits above which a text is code, JSON or a formula, and has no language."""
_FREQUENT_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "English": "the and of to is in that it you for was are with have this not my what can how do your be we they",
        "German": "der die das und ist nicht ich sie ein eine mit auf für von den dem zu wie was wir es sich auch im",
        "French": "le la les et est une des du que qui pas pour dans je vous nous avec sur ce il elle au en sont",
        "Spanish": "el la los las y es una que de no en por para con se su un lo como más del al está qué",
        "Italian": "il la che di e un una per non sono con del della è le gli si come da più anche questo",
        "Portuguese": "o a os as e que de não um uma para com em do da é se por mais como você dos das",
        "Dutch": "de het een en van is niet dat ik je op voor met zijn te aan er ook maar wat hoe",
        "Polish": "nie jest to się na i w z że do jak co dla czy tak po od przez są mam",
        "Turkish": "ve bir bu için ile çok ne da de mi ben var değil gibi daha olarak ama kadar",
        "Vietnamese": "và là của không có tôi cho được một các trong này với bạn người đã những khi",
        "Indonesian": "yang dan di ini itu dengan untuk tidak dari ada saya akan pada adalah bisa anda ke",
    }.items()
}
"""Frequent words of languages in Latin script, in lower case."""
UNKNOWN_LATIN = "another language in Latin script"
_MIN_FREQUENT_SHARE = 0.12
"""Share of words that must be frequent words of a language."""
_MIN_FREQUENT_WORDS, _SHORT_TEXT_WORDS = 2, 8
"""Smallest number of frequent words, and number of words below which a text in ASCII counts as English."""
_HAN_BESIDE_KANA = 20
"""Han characters per kana up to which a text is Japanese; Chinese texts quote a few kana."""
_MAX_CHARACTERS = 2_000
"""Characters of a text that are counted."""
MIN_LANGUAGE_SHARE = 0.1
"""Smallest share of the texts of a language that a data set is said to have."""
_MIN_LETTERS = 2
"""Smallest number of letters of a text with a language."""


@dataclass(frozen=True)
class LanguageShare:
    """A language and its share of texts, from 0 to 1."""

    language: str
    share: float


def find_language(text: str) -> str | None:
    """Return the language of a text, or None for a text without letters, such as numbers."""
    text = text[:_MAX_CHARACTERS]
    counts = {} if text.isascii() else {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    latin = len(_LATIN_LETTER.findall(text))
    if len(_CODE_SIGN.findall(text)) > _MAX_CODE_SHARE * len(text):
        return None
    kana, han = counts.get("Japanese", 0), counts.get("Chinese", 0)
    if kana and han <= _HAN_BESIDE_KANA * kana:
        counts |= {"Japanese": kana + han, "Chinese": 0}
    script = max(counts, key=lambda name: counts[name]) if counts else ""
    # A character of most other scripts carries as much as several Latin letters.
    if script and 3 * counts[script] > latin:
        return script
    return _find_latin_language(text) if latin >= _MIN_LETTERS else None


def _find_latin_language(text: str) -> str:
    """Return the language in Latin script whose frequent words a text has; English for a short text without them."""
    words = [word.lower() for word in _LATIN_WORD.findall(text)]
    counts = {language: sum(word in frequent for word in words) for language, frequent in _FREQUENT_WORDS.items()}
    best = max(counts, key=lambda language: counts[language])
    if counts[best] >= max(_MIN_FREQUENT_WORDS, _MIN_FREQUENT_SHARE * len(words)):
        return best
    return "English" if len(words) < _SHORT_TEXT_WORDS and text.isascii() else UNKNOWN_LATIN


def measure_languages(texts: Iterable[str]) -> tuple[LanguageShare, ...]:
    """Return the languages of texts with their shares, the largest first, without rare ones."""
    counts = Counter(language for text in texts if (language := find_language(text)) is not None)
    if counts[UNKNOWN_LATIN] < sum(counts.values()) / 2:  # formulas and names have no frequent words
        del counts[UNKNOWN_LATIN]
    total = sum(counts.values())
    return tuple(
        LanguageShare(language, count / total)
        for language, count in counts.most_common()
        if count >= MIN_LANGUAGE_SHARE * total
    )
