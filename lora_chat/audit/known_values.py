"""The values that were redacted in a dialogue, which get the same mark wherever they occur in it.

A number that is redacted in the result of a tool and kept in the next call would teach the model to make numbers up.
"""

import re
from collections.abc import Iterator

_NUMBER_MARKS = frozenset({"[PHONE]", "[CARD]", "[IBAN]", "[ID]"})
_GROUP = re.compile(r"[A-Za-z0-9]+")
_SEPARATOR = re.compile(r"[ ./()-]{0,3}")
_NOT_ALPHANUMERIC = re.compile(r"[^A-Za-z0-9]")
_WORD = re.compile(r"[A-Za-z0-9]+|[^\W_A-Za-z0-9]+")
_TOUCHING = re.compile("[A-Za-z0-9À-ɏͰ-ԯ]")
"""Pattern of letters and digits that make another word with the one they touch, unlike Chinese letters."""
_MAX_COUNTRY_CODE_DIGITS = 3
_MAX_GROUPS = 10
"""Maximum number of groups in which a number is written."""
_MIN_NUMBER_CHARACTERS, _MIN_TEXT_CHARACTERS, _MIN_WORD_CHARACTERS = 7, 6, 16


class KnownValues:
    """The redacted values of one dialogue with their marks. The first mark of a value is used for all of them."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}
        """Marks by the letters and digits of a number, without its separators."""
        self._longest_number = 0
        self._texts: dict[str, str] = {}
        """Marks of addresses, keys and passwords by their text, which is in lower case for addresses."""
        self._places: dict[str, dict[tuple[int, int], None]] = {}
        """By the first word of a text: the offset of that word and the length of the text, each pair once."""

    def __bool__(self) -> bool:
        return bool(self._numbers or self._texts)

    def mark(self, value: str, mark: str) -> str:
        """Remember a value, and return its first mark."""
        if mark in _NUMBER_MARKS:
            return self._mark_number(value, mark)
        key = value.lower() if mark == "[E-MAIL]" else value
        if key not in self._texts and _is_distinctive(value):
            word = _WORD.search(value)
            if word:
                self._texts[key] = mark
                self._places.setdefault(word[0].lower(), {})[word.start(), len(value)] = None
        return self._texts.get(key, mark)

    def _mark_number(self, value: str, mark: str) -> str:
        """Remember a number, a phone number also without its country code, and return its first mark."""
        key = _NOT_ALPHANUMERIC.sub("", value).upper()
        known = self._numbers.get(key, mark)
        for form in (key, *(_other_forms(value, key) if mark == "[PHONE]" else ())):
            if len(form) >= _MIN_NUMBER_CHARACTERS:
                self._numbers.setdefault(form, known)
                self._longest_number = max(self._longest_number, len(form))
        return known

    def replace(self, text: str) -> tuple[str, int]:
        """Return the text with marks in place of the values, and the number of replacements."""
        spans = sorted({*self._find_numbers(text), *self._find_texts(text)}, key=lambda span: (span[0], -span[1]))
        parts, at, count = [], 0, 0
        for start, end, mark in spans:
            if start >= at:
                parts += [text[at:start], mark]
                at, count = end, count + 1
        return "".join([*parts, text[at:]]), count

    def _find_numbers(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Yield start, end and mark of the numbers in a text, in whatever groups they are written."""
        if not self._numbers:
            return
        groups = list(_GROUP.finditer(text))
        first = 0
        while first < len(groups):
            joined, matched = "", 0
            for index in range(first, min(first + _MAX_GROUPS, len(groups))):
                if index > first and not _SEPARATOR.fullmatch(text, groups[index - 1].end(), groups[index].start()):
                    break
                joined += groups[index][0].upper()
                if len(joined) > self._longest_number + _MAX_COUNTRY_CODE_DIGITS:
                    break
                known = self._numbers.get(joined) or self._find_international(text, groups[first].start(), joined)
                if known and _is_free(text, groups[first].start(), groups[index].end()):
                    matched, mark = index + 1, known
            if not matched:
                first += 1
                continue
            start = groups[first].start()
            while start and text[start - 1] in "+(":
                start -= 1
            yield start, groups[matched - 1].end(), mark
            first = matched

    def _find_international(self, text: str, start: int, digits: str) -> str | None:
        """Return the mark of a known phone number that has `+` and a country code here."""
        if text[start - 1 : start] != "+":
            return None
        lengths = range(1, _MAX_COUNTRY_CODE_DIGITS + 1)
        mark = next((self._numbers[digits[n:]] for n in lengths if digits[n:] in self._numbers), None)
        return mark if mark == "[PHONE]" else None

    def _find_texts(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Yield start, end and mark of the other values in a text."""
        for word in _WORD.finditer(text) if self._texts else ():
            for offset, length in self._places.get(word[0].lower(), ()):
                start, end = word.start() - offset, word.start() - offset + length
                value = text[max(0, start) : end]
                mark = self._texts.get(value) or self._texts.get(value.lower(), "")
                is_mark = mark == "[E-MAIL]" or (mark and value in self._texts)
                if is_mark and start >= 0 and len(value) == length and _is_free(text, start, end):
                    yield start, end, mark


def _other_forms(value: str, digits: str) -> Iterator[str]:
    """Yield the digits of a phone number as they are written without, or with, its prefix and its country code."""
    import phonenumbers

    yield digits.lstrip("0")  # a JSON number has no zeros at its beginning
    number = re.sub("^00", "+", re.sub("[^0-9+]", "", value))
    if number.startswith("+"):
        try:
            parsed = phonenumbers.parse(number)
        except phonenumbers.NumberParseException:
            return
        national, code = phonenumbers.national_significant_number(parsed), parsed.country_code
        yield from (national, f"0{national}", f"{code}{national}", f"00{code}{national}")


def _is_distinctive(value: str) -> bool:
    """Return whether a value is not a word that may occur elsewhere with another meaning."""
    return len(value) >= _MIN_TEXT_CHARACTERS and (not value.isalpha() or len(value) >= _MIN_WORD_CHARACTERS)


def _is_free(text: str, start: int, end: int) -> bool:
    """Return whether no letter or digit touches a part of a text."""
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    return not (_TOUCHING.match(before) and _TOUCHING.match(text, start)) and not (
        _TOUCHING.match(after) and _TOUCHING.match(text, end - 1)
    )
