"""Phone numbers, checked against the numbering plans in Google's libphonenumber."""

import re
from collections.abc import Iterator
from functools import cache, lru_cache

from pydantic import TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.audit.report import TextMatch
from lora_chat.config.base import NonEmptyStr, StrictModel

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


class _PhoneFormats(StrictModel):
    """The content of `phone_formats.json`."""

    keyword_patterns: tuple[NonEmptyStr, ...]
    """Patterns of the words that announce a phone number."""
    regions: tuple[NonEmptyStr, ...]
    """Regions whose numbering plans are tried after such a word."""
    national_patterns: dict[NonEmptyStr, tuple[NonEmptyStr, ...]]
    """Usual forms of national numbers by region. Numbers in other forms need a word before them."""


@cache
def _load_formats() -> tuple[re.Pattern[str], tuple[str, ...], tuple[tuple[str, re.Pattern[str]], ...]]:
    """Return the pattern of the keywords, the regions, and the pattern of the national forms of each region."""
    formats = load_data_file("sensitive", "phone_formats.json", TypeAdapter(_PhoneFormats))
    national = tuple((region, re.compile("|".join(forms))) for region, forms in formats.national_patterns.items())
    return re.compile("|".join(formats.keyword_patterns), re.IGNORECASE), formats.regions, national


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
    keywords, _, national = _load_formats()
    for region, pattern in national:
        if pattern.fullmatch(number) and _is_valid(number, region):
            return True
    digits = re.sub("[^0-9]", "", number)
    before = text[max(0, start - 40) : start]
    if _CHINESE_MOBILE.fullmatch(number) and re.search("[\u4e00-\u9fff]", before + text[start + 11 : start + 51]):
        return _is_valid(digits, "CN")
    return bool(keywords.search(before)) and _is_valid_in_any_region(digits)


@lru_cache(maxsize=1 << 14)
def _is_valid_in_any_region(digits: str) -> bool:
    return any(_is_valid(digits, region) for region in _load_formats()[1])


def _is_valid(number: str, region: str | None) -> bool:
    return _has_valid_digits(re.sub("[^0-9+]", "", number), region)


@lru_cache(maxsize=1 << 14)
def _has_valid_digits(digits: str, region: str | None) -> bool:
    """Return whether a numbering plan contains the number. Cached, because redaction checks a text several times."""
    import phonenumbers

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
