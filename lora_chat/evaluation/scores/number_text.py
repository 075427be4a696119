"""Numbers in a text: digits of every script, separators, fractions, powers, percent signs and Chinese numerals."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from lora_chat.evaluation.scores.chinese_numerals import find_last_numeral
from lora_chat.evaluation.scores.text import normalize_form

_MAX_DIGITS = 200
"""Most digits of a number that is computed; a longer one is compared as text."""
_MAX_POWER = 64
"""Largest exponent that is computed."""
_SCALES = {
    **{"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "k": 10**3},
    **{"百": 10**2, "千": 10**3, "万": 10**4, "萬": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8, "億": 10**8},
}
_EXPONENT = r"[{(]?(?P<%s>[+-]?\d{1,30})[)}]?"
_NUMBER = re.compile(
    r"(?:(?P<whole>\d{1,9})\ (?=\d+/\d+(?![\d/])))?"
    r"(?P<body>\d(?:[\d.,:/'_-]*\d)?)"
    r"(?:e(?P<exponent>[+-]?\d{1,30})(?!\w))?"
    r"(?:\s?(?:[x×*·]|\\times|\\cdot)\s?10\^" + _EXPONENT % "ten" + r")?"
    r"(?:\^" + _EXPONENT % "power" + r")?"
    r"(?:\s?(?P<scale>thousand|million|billion|trillion|百万|千万|百|千|万|萬|亿|億|k)(?![a-z]))?"
    r"(?P<percent>\s?(?:%|percent\b|per\ cent\b))?",
    re.IGNORECASE | re.VERBOSE,
)
_SIGN = re.compile(r"(?:(?:^|[^\w)\]])-[$€£¥₹]?|\b(?:minus|negative)\s|[负負]|零下)\Z", re.IGNORECASE)
_CHINESE_PERCENT = "百分之"
_PLAIN = re.compile(r"\d+")
_DECIMAL = re.compile(r"\d+[.,]\d+")
_FRACTION = re.compile(r"(\d+)/(\d+)")
_ENGLISH = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_EUROPEAN = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}")
_SWISS = re.compile(r"\d{1,3}(?:['_]\d{3})+(?:\.\d+)?")
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
_SLASH = re.compile(r"(?<=\d) ?/ ?(?=\d)")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,50})\}\{(\d{1,50})\}")
_SUPERSCRIPTS = re.compile("[⁺⁻⁰¹²³⁴-⁹]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_REPLACED = str.maketrans({"−": "-", "–": "-", "‐": "-", "‑": "-", "٫": ".", "٬": ",", "⁄": "/", "’": "'", "٪": "%"})


@dataclass(frozen=True)
class Number:
    """A number of a text."""

    value: Fraction | str
    """The value, or the text of a time, a date, a range, a version or a number that is too long."""
    is_percent: bool = False

    def equals(self, other: "Number") -> bool:
        """Return whether both are equal. If only one has a percent sign, 50 % equals 50 and 0.5."""
        if isinstance(self.value, str) or isinstance(other.value, str) or self.is_percent == other.is_percent:
            return self == other
        percent, plain = (self.value, other.value) if self.is_percent else (other.value, self.value)
        return plain in (percent, percent / 100)


def find_last_number(text: str) -> Number | None:
    """Return the last number of a text. Chinese numerals are read only from a text without digits."""
    text = _simplify(text)
    last = None
    for match in _NUMBER.finditer(text):
        last = match
    return find_chinese_number(text) if last is None else _read(last, text)


def is_single_number(text: str) -> bool:
    """Return whether a text is one number in digits, with no word, unit or other number beside it."""
    text = _simplify(text)
    matches = list(_NUMBER.finditer(text))
    return len(matches) == 1 and not re.search(r"\w", text[: matches[0].start()] + text[matches[0].end() :])


def find_chinese_number(text: str) -> Number | None:
    """Return the last number in Chinese numerals."""
    numeral = find_last_numeral(text)
    if numeral is None:
        return None
    value, start = numeral
    is_percent = text[:start].endswith(_CHINESE_PERCENT)
    return Number(-value if _SIGN.search(text[max(0, start - 10) : start]) else value, is_percent)


def _simplify(text: str) -> str:
    """Return a text with ASCII digits, simple signs and plain fractions and powers."""
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = _SUPERSCRIPTS.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
    text = normalize_form(text).translate(_REPLACED)
    if not text.isascii():
        text = "".join(c if c.isascii() or unicodedata.category(c) != "Nd" else str(unicodedata.digit(c)) for c in text)
    text = text.replace("{,}", ",").replace("\\,", " ").replace("\\%", "%").replace("\\$", "$")
    text = _SLASH.sub("/", _LATEX_FRACTION.sub(r"\1/\2", text))
    return _GROUPS.sub(lambda match: match[0].replace(" ", ""), text)


def _read(match: re.Match[str], text: str) -> Number:
    """Return the number of a match, with the sign before it."""
    start, body = match.start(), match["body"]
    is_negative = _SIGN.search(text[max(0, start - 10) : start]) is not None
    before = text[max(0, start - 2) : start]
    if before.endswith(".") and not before[0].isalnum() and before != ".." and _PLAIN.fullmatch(body):
        body = f"0.{body}"  # .5
        is_negative = _SIGN.search(text[max(0, start - 11) : start - 1]) is not None
    value = _value(body)
    value = value if value is None else _scale(value, match)
    if value is None:
        return Number(("-" if is_negative else "") + match[0].strip())
    is_percent = match["percent"] is not None or text[:start].endswith(_CHINESE_PERCENT)
    return Number(-value if is_negative else value, is_percent)


def _value(body: str) -> Fraction | None:
    """Return the value of digits and separators; None if they are no single number."""
    if len(body) > _MAX_DIGITS:
        return None
    if _PLAIN.fullmatch(body):
        return Fraction(int(body))
    if _ENGLISH.fullmatch(body):
        return Fraction(body.replace(",", ""))
    if _EUROPEAN.fullmatch(body):
        return Fraction(body.replace(".", "").replace(",", "."))
    if _SWISS.fullmatch(body):
        return Fraction(body.replace("'", "").replace("_", ""))
    if _DECIMAL.fullmatch(body):
        return Fraction(body.replace(",", "."))
    fraction = _FRACTION.fullmatch(body)
    return Fraction(int(fraction[1]), int(fraction[2])) if fraction and int(fraction[2]) else None


def _scale(value: Fraction, match: re.Match[str]) -> Fraction | None:
    """Return a value with its whole part, its exponents and its scale; None if a power is too large."""
    if match["whole"]:
        value += int(match["whole"])
    power = int(match["power"] or 1)
    exponents = [int(match[name] or 0) for name in ("exponent", "ten")]
    if abs(power) > _MAX_POWER or max(map(abs, exponents)) > _MAX_DIGITS or (power < 0 and not value):
        return None
    value = value**power * Fraction(10) ** sum(exponents)
    return value * _SCALES.get((match["scale"] or "").lower(), 1)
