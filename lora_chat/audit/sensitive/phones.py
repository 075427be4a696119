"""Phone numbers, checked against the numbering plans in Google's libphonenumber."""

import re
from collections.abc import Iterator
from functools import lru_cache

from lora_chat.audit.report import TextMatch

_INTERNATIONAL = re.compile(
    r"(?<![A-Za-z0-9_+*/=.-])(?:\+|00(?=[1-9])) ?[1-9][0-9]{0,3}(?:[ ./-]{0,2}\(?[0-9]{1,5}\)?){1,6}(?![A-Za-z0-9_])"
)
_NATIONAL = re.compile(
    r"(?<![A-Za-z0-9_#$€£¥*/=+.,-])(?<![0-9][ :])[(（]?[0-9]{2,5}[)）]?(?:[ ./-]{0,2}[0-9]{2,8}){0,4}"
    r"(?![A-Za-z0-9_%€]|[.,:/-][0-9]|[ ]?[*/=x×÷])"
)
_PHONE_WORDS = re.compile(
    r"phone|\btel\b|tel[.:]|mobile|\bcell\b|\bcall(?:ed|ing)?\b|\bfax\b|whats?app|wechat|text me|\bsms\b|\bring\b|"
    r"reach|telefon|handy|anruf|mobil|téléphon|appel|portable|teléfon|móvil|llám|llama|celular|telefone|ligue|ligar|"
    r"cellulare|chiam|numero di|número|numéro|bel(?:len)?\b|nummer|тел|звон|номер|zadzwoń|"
    r"电话|手机|號碼|号码|致电|联系|電話|携帯|전화|फोन",
    re.IGNORECASE,
)
_NATIONAL_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    # How numbers are usually written at home; other shapes need a word such as "phone" before them
    ("US", re.compile(r"\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[-. ][0-9]{4}|[2-9][0-9]{2}([-.])[2-9][0-9]{2}\1[0-9]{4}")),
    (
        "GB",
        re.compile(r"07[0-9]{3} [0-9]{6}|07[0-9]{3} [0-9]{3} [0-9]{3}|02[0-9] [0-9]{4} [0-9]{4}|01[0-9]{3} [0-9]{6}"),
    ),
    ("FR", re.compile(r"0[1-9](?:([ .])[0-9]{2})(?:\1[0-9]{2}){3}")),
    ("DE", re.compile(r"01[5-7][0-9][ /-]?[0-9]{7,8}|0[2-9][0-9]{1,4}[/-][ ]?[0-9]{5,8}")),
    ("ES", re.compile(r"[67][0-9]{2} [0-9]{3} [0-9]{3}|[67][0-9]{2} [0-9]{2} [0-9]{2} [0-9]{2}")),
    ("IT", re.compile(r"3[0-9]{2} [0-9]{3} [0-9]{4}|3[0-9]{2} [0-9]{7}")),
    ("CN", re.compile(r"1[3-9][0-9] [0-9]{4} [0-9]{4}|1[3-9][0-9]-[0-9]{4}-[0-9]{4}|0[1-9][0-9]{1,2}-[0-9]{7,8}")),
    ("JP", re.compile(r"0[789]0-[0-9]{4}-[0-9]{4}|0[1-9]-[0-9]{4}-[0-9]{4}")),
    ("BR", re.compile(r"\([1-9][0-9]\) ?9?[0-9]{4}-[0-9]{4}")),
    ("IN", re.compile(r"[6-9][0-9]{4} [0-9]{5}")),
)
_REGIONS = (
    "US",
    "GB",
    "DE",
    "FR",
    "ES",
    "IT",
    "NL",
    "PL",
    "BR",
    "MX",
    "IN",
    "CN",
    "JP",
    "KR",
    "RU",
    "AU",
    "CH",
    "AT",
    "TR",
)
_CHINESE_MOBILE = re.compile(r"1[3-9][0-9]{9}")
_YEAR_RANGE = re.compile("(?:19|20)[0-9]{2}[ ./-]{1,2}(?:19|20)[0-9]{2}")
_FICTIONAL_NUMBER = re.compile(r"(?:\+?1)?[2-9][0-9]{2}55501[0-9]{2}")
"""555-0100 to 555-0199 are kept for films and examples (ATIS-0300115)."""


def find_phones(text: str) -> Iterator[TextMatch]:
    """International numbers, national ones in a usual shape, and others after a word that announces one."""
    for found in _INTERNATIONAL.finditer(text):
        number = re.sub("^00", "+", found[0])
        if 8 <= _count_digits(number) <= 15 and _is_valid(number, None):
            yield _phone_match(found)
    for found in _NATIONAL.finditer(text):
        if 8 <= _count_digits(found[0]) <= 13 and _is_national(found[0], text, found.start()):
            yield _phone_match(found)


def _is_national(number: str, text: str, start: int) -> bool:
    if _YEAR_RANGE.fullmatch(number):
        return False
    for region, shape in _NATIONAL_SHAPES:
        if shape.fullmatch(number) and _is_valid(number, region):
            return True
    digits = re.sub("[^0-9]", "", number)
    before = text[max(0, start - 40) : start]
    if _CHINESE_MOBILE.fullmatch(number) and re.search("[\u4e00-\u9fff]", before + text[start + 11 : start + 51]):
        return _is_valid(digits, "CN")
    return bool(_PHONE_WORDS.search(before)) and _is_valid_in_any_region(digits)


@lru_cache(maxsize=1 << 14)
def _is_valid_in_any_region(digits: str) -> bool:
    return any(_is_valid(digits, region) for region in _REGIONS)


def _is_valid(number: str, region: str | None) -> bool:
    return _has_valid_digits(re.sub("[^0-9+]", "", number), region)


@lru_cache(maxsize=1 << 14)
def _has_valid_digits(digits: str, region: str | None) -> bool:
    """Return whether a numbering plan has the number; cached because redacting looks at a text more than once."""
    import phonenumbers

    if _FICTIONAL_NUMBER.fullmatch(digits) or len(set(digits)) < 4 or digits.lstrip("+") in "01234567890123456789":
        return False
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(digits, region))
    except phonenumbers.NumberParseException:
        return False


def _count_digits(number: str) -> int:
    return sum(c.isdigit() for c in number)


def _phone_match(found: re.Match[str]) -> TextMatch:
    return TextMatch("personal_data", "phone number", found.start(), found.end(), "[PHONE]")
