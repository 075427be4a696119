"""Words that announce a phone number: `phone`, `Handynummer`, `call me at`, and the keys of JSON."""

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from pydantic import TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.audit.sensitive.cue_words import compile_words, split_words
from lora_chat.config.base import NonEmptyStr, StrictModel

_DISTANCE_CHARACTERS = 40
"""Maximum distance of a cue before a number, in characters."""
_MAX_LOOKBEHIND_CHARACTERS = 16
"""Number of characters before a cue that decide whether it is a whole word."""
_ATTACHED = re.compile(r"[ _-]{0,2}[^\W\d_]")
"""Pattern of a word that belongs to the word before it."""
_NEXT_SENTENCE = re.compile(r"[.!?;|。！？；]\s*(?=[^\W\d_])|\n\s*(?=[^\W\d_])")
_KEY_END = re.compile(r"[\"']\s*[:=]\s*[\"'(+]*\Z")
_LABEL_END = re.compile(r"[^\W\d_][^\w,;.!?\n]{0,6}\Z")
_CHINESE_LABEL = re.compile(
    "(?:编号|編號|订单|訂單|商品|产品|產品|型号|型號|货号|貨號|单号|單號|条码|條碼)[^0-9]{0,6}\\Z"
)
_CHINESE = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_CHINESE_FOLLOWER = re.compile("[^\u3400-\u9fff]|[号號码碼是为為的]|\\Z")


class PhoneFormats(StrictModel):
    """The content of `phone_formats.json`."""

    names: tuple[NonEmptyStr, ...]
    """Patterns of the names of phones and their numbers. A thing after them makes another name: `phone case`."""
    numbers: tuple[NonEmptyStr, ...]
    """Patterns of words for any number, which announce a phone number only directly before it."""
    verbs: tuple[NonEmptyStr, ...]
    """Patterns of verbs, which need a word such as `at` or `me` after them, or the number itself."""
    followers: tuple[NonEmptyStr, ...]
    """Words that may follow a name: `phone number`, `mobile is`."""
    prepositions: tuple[NonEmptyStr, ...]
    """Words of which a verb needs one."""
    other_labels: tuple[NonEmptyStr, ...]
    """Words that make a number another one: `order`, `model`."""
    regions: tuple[NonEmptyStr, ...]
    """Regions whose numbering plans are tried after such a word."""
    national_patterns: dict[NonEmptyStr, tuple[NonEmptyStr, ...]]
    """Usual forms of national numbers by region. Numbers in other forms need a word before them."""


@cache
def load_phone_formats() -> PhoneFormats:
    """Return the words that announce phone numbers, and the forms of national numbers."""
    return load_data_file("sensitive", "phone_formats.json", TypeAdapter(PhoneFormats))


@dataclass(frozen=True)
class _Cues:
    """The compiled words."""

    names: re.Pattern[str]
    numbers: re.Pattern[str]
    verbs: re.Pattern[str]
    followers: frozenset[str]
    prepositions: frozenset[str]
    other_labels: frozenset[str]


@cache
def _load_cues() -> _Cues:
    """Return the compiled words of the data file."""
    formats = load_phone_formats()
    return _Cues(
        names=compile_words(formats.names),
        numbers=compile_words(formats.numbers),
        verbs=compile_words(formats.verbs),
        followers=frozenset(formats.followers),
        prepositions=frozenset(formats.prepositions),
        other_labels=frozenset(formats.other_labels),
    )


def announces_phone(text: str, start: int) -> bool:
    """Return whether the words before a number at `start` announce a phone number."""
    return _ends_with_cue(text[max(0, start - _DISTANCE_CHARACTERS - _MAX_LOOKBEHIND_CHARACTERS) : start])


@lru_cache(maxsize=1 << 12)
def _ends_with_cue(text: str) -> bool:
    """Return whether a text announces a phone number after it. Cached, because the keys of JSON are repeated."""
    cues, first = _load_cues(), max(0, len(text) - _DISTANCE_CHARACTERS)
    for patterns, is_cue in ((cues.names, _is_name), (cues.numbers, _is_number_word), (cues.verbs, _is_verb)):
        # A search with bounds still sees the letters before the first character, unlike one in a part of the text.
        if any(is_cue(match[0], text[match.end() :]) for match in patterns.finditer(text, first)):
            return not names_other_number(text, len(text))
    return False


def names_other_number(text: str, start: int) -> bool:
    """Return whether one of the last words before a number is the label of another kind of number, such as `order`."""
    first = max(0, start - 24)
    if _CHINESE_LABEL.search(text, first, start):
        return True
    before = text[first:start]
    return bool(_LABEL_END.search(before)) and not _load_cues().other_labels.isdisjoint(split_words(before)[-2:])


def _is_name(cue: str, between: str) -> bool:
    """Return whether the name of a phone is followed by its number, not by a thing such as in `phone case`."""
    cues = _load_cues()
    if _CHINESE.match(cue[-1]):
        return bool(_CHINESE_FOLLOWER.match(between))
    words = split_words(between)
    if not cues.other_labels.isdisjoint(words):
        return False
    if words and words[0] not in cues.followers and _ATTACHED.match(between):
        return False
    sentences = _NEXT_SENTENCE.split(between)
    last_words = words if _KEY_END.search(between) else split_words(sentences[-1]) if len(sentences) > 1 else ()
    return cues.followers.issuperset(last_words)


def _is_number_word(cue: str, between: str) -> bool:
    """Return whether a word for any number is directly before it."""
    return _load_cues().followers.issuperset(split_words(between))


def _is_verb(cue: str, between: str) -> bool:
    """Return whether a verb such as `call` has the number as its object: `call Maria at`."""
    cues, words = _load_cues(), split_words(between)
    if _CHINESE.match(cue[-1]):
        return True
    if not words:
        return not _KEY_END.search(between)
    return words[0] in cues.prepositions or words[-1] in cues.prepositions
