"""Numbers in Chinese numerals, such as 四十二, 三点五, 三分之一 and 二〇二四."""

import re
from fractions import Fraction

_DIGITS = {
    c: i
    for i, row in enumerate(["零〇", "一壹", "二贰两兩", "三叁", "四肆", "五伍", "六陆", "七柒", "八捌", "九玖"])
    for c in row
}
_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_SECTIONS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_NUMERAL = f"[{''.join([*_DIGITS, *_UNITS, *_SECTIONS])}]{{1,40}}"
_DECIMALS = f"[{''.join(_DIGITS)}]{{1,40}}"
_PATTERN = re.compile(f"(?:(?P<below>{_NUMERAL})分之)?(?P<body>{_NUMERAL})(?:点(?P<decimals>{_DECIMALS}))?")


def find_last_numeral(text: str) -> tuple[Fraction, int] | None:
    """Return the last number in Chinese numerals and the index where it begins."""
    last = None
    for match in _PATTERN.finditer(text):
        last = match
    if last is None:
        return None
    value = Fraction(_read(last["body"]))
    if last["decimals"]:
        value += Fraction("0." + "".join(str(_DIGITS[c]) for c in last["decimals"]))
    if last["below"] is None:
        return value, last.start()
    if last["below"] == "百":  # a percentage, which the caller reads from the text before
        return value, last.start("body")
    below = _read(last["below"])
    return (value / below, last.start()) if below else None


def _read(numeral: str) -> int:
    """Return the value of a numeral: digits one by one, or with units such as 十 and 万."""
    if all(c in _DIGITS for c in numeral):
        return int("".join(str(_DIGITS[c]) for c in numeral))
    total = section = digit = 0
    for c in numeral:
        if c in _DIGITS:
            digit = _DIGITS[c]
        elif c in _UNITS:
            section += (digit or 1) * _UNITS[c]
            digit = 0
        else:
            section += digit
            if _SECTIONS[c] > 10**4 and total:  # 一万亿
                total = (total + section) * _SECTIONS[c]
            else:
                total += (section or 1) * _SECTIONS[c]
            section = digit = 0
    return total + section + digit
