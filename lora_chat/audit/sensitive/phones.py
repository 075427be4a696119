"""Phone numbers, checked against the numbering plans in Google's libphonenumber."""

import re
from collections.abc import Iterator
from functools import cache, lru_cache

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.examples import load_examples
from lora_chat.audit.sensitive.phone_cues import announces_phone, load_phone_formats, names_other_number

_INTERNATIONAL = re.compile(
    r"(?<![A-Za-z0-9_+*/=.-])(?:\+|00(?=[1-9])) ?[1-9][0-9]{0,3}(?:[ ./-]{0,2}\(?[0-9]{1,5}\)?){1,6}(?![A-Za-z0-9_])"
)
_NATIONAL = re.compile(
    r"(?<![A-Za-z0-9_#$€£¥*/=+.,-])(?<![0-9][ :])[(（]?[0-9]{2,5}[)）]?(?:[ ./-]{0,2}[0-9]{2,8}){0,4}"
    r"(?![A-Za-z0-9_%€]|[.,:/-][0-9]|[ ]?[*/=x×÷])"
)
_CHINESE_MOBILE = re.compile(r"1[3-9][0-9]{9}")
_YEAR_RANGE = re.compile("(?:19|20)[0-9]{2}[ ./-]{1,2}(?:19|20)[0-9]{2}")
_FICTIONAL_NUMBER = re.compile(r"(?:\+?1)?[2-9][0-9]{2}55501[0-9]{2}")
"""Pattern of 555-0100 to 555-0199, which are reserved for films and examples (ATIS-0300115)."""


@cache
def _load_national_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return the pattern of the national forms of each region."""
    patterns = load_phone_formats().national_patterns
    return tuple((region, re.compile("|".join(forms))) for region, forms in patterns.items())


def find_phones(text: str) -> Iterator[TextMatch]:
    """Yield international numbers, national ones in a usual form, and others after a word that announces one."""
    for match in _INTERNATIONAL.finditer(text):
        number = re.sub("^00", "+", match[0])
        if 8 <= _count_digits(number) <= 15 and _is_valid(number, None):
            yield _phone_match(match)
    for match in _NATIONAL.finditer(text):
        if 8 <= _count_digits(match[0]) <= 13 and _is_national(match[0], text, match.start()):
            yield _phone_match(match)


def _is_national(number: str, text: str, start: int) -> bool:
    """Return whether a number at `start` in a text is a valid national phone number in its context."""
    if _YEAR_RANGE.fullmatch(number):
        return False
    for region, pattern in _load_national_patterns():
        if pattern.fullmatch(number) and _is_valid(number, region):
            return not names_other_number(text, start)
    digits = re.sub("[^0-9]", "", number)
    before = text[max(0, start - 40) : start]
    if _CHINESE_MOBILE.fullmatch(number) and re.search("[\u4e00-\u9fff]", before + text[start + 11 : start + 51]):
        return _is_valid(digits, "CN") and not names_other_number(text, start)
    return announces_phone(text, start) and _is_valid_in_any_region(digits)


@lru_cache(maxsize=1 << 14)
def _is_valid_in_any_region(digits: str) -> bool:
    return any(_is_valid(digits, region) for region in load_phone_formats().regions)


def _is_valid(number: str, region: str | None) -> bool:
    return _has_valid_digits(re.sub("[^0-9+]", "", number), region)


@lru_cache(maxsize=1 << 14)
def _has_valid_digits(digits: str, region: str | None) -> bool:
    """Return whether a numbering plan contains the number. Cached, because redaction checks a text several times."""
    import phonenumbers

    if digits in load_examples().phone_numbers:
        return False
    if _FICTIONAL_NUMBER.fullmatch(digits) or len(set(digits)) < 4 or digits.lstrip("+") in "01234567890123456789":
        return False
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(digits, region))
    except phonenumbers.NumberParseException:
        return False


def _count_digits(number: str) -> int:
    return sum(c.isdigit() for c in number)


def _phone_match(match: re.Match[str]) -> TextMatch:
    return TextMatch("personal_data", "phone number", match.start(), match.end(), "[PHONE]")
