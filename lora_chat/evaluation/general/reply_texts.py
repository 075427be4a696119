"""Checks of words and numbers in a reply. All take time proportional to the reply, which the caller bounds."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

_NUMBER = re.compile(r"(?<![a-z0-9_.])-?\d{1,18}(?:,\d{3}){0,4}(?:\.\d{1,9})?")
_NUMBER_BEGIN, _NUMBER_END = re.compile(r"\d[.,]$|(?:^|[^\w)])[-\u2212]$"), re.compile(r"[.,]\d")
_EAST_ASIAN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
EAST_ASIAN_LETTER = re.compile(f"[{_EAST_ASIAN}]")
"""A letter of a language that is written without blanks between words."""
_UNITS = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]+(?:['-][^\W{_EAST_ASIAN}]+)*")

ADMISSIONS: dict[str, Sequence[str]] = {
    "en": (
        *("i don't know", "i do not know", "don't have", "do not have", "doesn't exist", "does not exist"),
        *("no information", "not aware of", "not familiar with", "not sure", "couldn't find", "could not find"),
        *("can't find", "cannot find", "unable to", "fictional", "fictitious", "not a real", "isn't a real", "no such"),
        *("never heard", "no record", "can't know", "cannot know", "can't verify", "cannot verify", "can't tell"),
        *("cannot tell", "no way to know", "no way of knowing", "not possible to", "didn't exist", "did not exist"),
        *("can't answer", "cannot answer", "can't provide", "cannot provide", "not able to", "haven't told"),
    ),
    "zh": (
        *(
            "不知道",
            "不清楚",
            "不了解",
            "不确定",
            "不熟悉",
            "不存在",
            "找不到",
            "查不到",
            "没有找到",
            "未找到",
            "没找到",
        ),
        *(
            "虚构",
            "没有听说",
            "没听说",
            "未听说",
            "无法确认",
            "无法确定",
            "无法提供",
            "无法得知",
            "无法知道",
            "无法回答",
        ),
        *(
            "无法找到",
            "无法查",
            "没有相关",
            "没有任何",
            "没有关于",
            "没有这",
            "并没有",
            "没有记录",
            "没有告诉",
            "无从得知",
        ),
    ),
}
"""Phrases by which a reply admits that the model does not know, by language. Each is searched in lower case."""


def normalize(text: str) -> str:
    """Return a text in lower case, with full-width letters and typographic apostrophes replaced by plain ones."""
    return unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")


def contains_phrase(reply: str, phrase: str) -> bool:
    """Return whether a normalized reply contains a phrase as whole words; scripts without blanks need no borders."""
    begin = reply.find(phrase)
    while begin >= 0:
        end = begin + len(phrase)
        before, after = reply[max(0, begin - 2) : begin], reply[end : end + 2]
        if not (_joins(before[-1:], phrase[0]) or _joins(phrase[-1], after[:1]) or _cuts_number(before, phrase, after)):
            return True
        begin = reply.find(phrase, begin + 1)
    return False


def _joins(left: str, right: str) -> bool:
    """Return whether two neighbouring characters, or none, belong to one word."""
    return all(side and (side.isalnum() or side == "_") and not EAST_ASIAN_LETTER.match(side) for side in (left, right))


def _cuts_number(before: str, phrase: str, after: str) -> bool:
    """Return whether a phrase is only a part of a number with a sign, a decimal point or groups of digits."""
    is_after = phrase[0].isdigit() and (_NUMBER_BEGIN.search(before) is not None)
    return is_after or (phrase[-1].isdigit() and _NUMBER_END.match(after) is not None)


def contains_any(reply: str, accept: Sequence[str]) -> bool:
    """Return whether a reply contains an accepted text as whole words, in any case."""
    normalized = normalize(reply)
    return any(contains_phrase(normalized, normalize(text)) for text in accept)


def contains_all(reply: str, texts: Sequence[str]) -> bool:
    """Return whether a reply contains all texts as whole words, in any case."""
    return all(contains_any(reply, [text]) for text in texts)


def equals_any(reply: str, accept: Sequence[str]) -> bool:
    """Return whether a reply is an accepted text, apart from case, blanks, and marks at its ends."""
    return strip_marks(reply) in {strip_marks(text) for text in accept}


def strip_marks(text: str) -> str:
    """Return a normalized text without quotes, stops and other marks at its ends."""
    text = " ".join(normalize(text).split())
    inside = [index for index, character in enumerate(text) if character.isalnum()]
    return text[inside[0] : inside[-1] + 1] if inside else text


def admits_ignorance(reply: str, language: str) -> bool:
    """Return whether a reply contains a phrase of `ADMISSIONS`."""
    normalized = normalize(reply)
    return any(phrase in normalized for phrase in ADMISSIONS[language])


def states_number(reply: str, value: float) -> bool:
    """Return whether the result that a reply states is a number.

    It is the first number after the last equals sign; without a sign it is the only number, or the last one.
    """
    text = normalize(reply)
    _, sign, after = text.rpartition("=")
    numbers = list(_read_numbers(after if sign else text))
    return bool(numbers) and (numbers[0] if sign else numbers[-1]) == value


def _read_numbers(text: str) -> Iterator[float]:
    for match in _NUMBER.finditer(text):
        yield float(match[0].replace(",", ""))


def split_units(text: str) -> list[str]:
    """Return the words of a text; a letter of a script without blanks counts as a word."""
    return _UNITS.findall(normalize(text))


def has_loop(text: str) -> bool:
    """Return whether a text repeats a group of up to 20 words three times in a row, or one word five times."""
    units = split_units(text)
    for period in range(1, min(20, len(units) // 3) + 1):
        needed = 4 if period == 1 else 2 * period
        run = 0
        for index in range(period, len(units)):
            run = run + 1 if units[index] == units[index - period] else 0
            if run >= needed:
                return True
    return False


def is_in_language(text: str, language: str) -> bool:
    """Return whether most letters of a text belong to the script of a language; False without letters."""
    letters = [character for character in text if character.isalpha()]
    if language == "zh":
        matching = sum("\u4e00" <= letter <= "\u9fff" or "\u3400" <= letter <= "\u4dbf" for letter in letters)
        return 2 * matching > len(letters)
    return bool(letters) and 10 * sum(letter.isascii() for letter in letters) > 9 * len(letters)
