"""Disguised spellings of a text, decoded: zero-width characters, full-width letters, entities, escapes, codes.

Detectors run on the text itself and, if a cheap test finds a disguise, also on its decoded form. The decoded form
keeps the offset of each character in the original, because a match is reported and replaced there.
"""

import html
import re
import unicodedata
from array import array
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain

from lora_chat.audit.report import TextMatch

UNDETECTED_SPELLINGS: tuple[tuple[str, str], ...] = (
    ("split", "one part in one message, argument or answer and the rest in another"),
    ("concatenated", "string literals that code joins, or markup between the letters"),
    ("spelled", "backwards, in ROT13, as words, or with letters replaced by similar ones of another script"),
    ("encoded twice", "base64 of base64, base64 wrapped over lines, base32, encryption and compression"),
    ("unknown format", "a secret without a known prefix that no word such as `password` announces"),
    ("broken numbers", "phone, card and account numbers and addresses that are broken over lines or spelled out"),
)
"""Names of the spellings that the audit does not find, each with its description."""

_MAX_DECODING_ROUNDS = 3
_ESCAPE_PATTERNS = (
    r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,23}(?=;));?",
    r"\\{1,8}u[dD][89abAB][0-9A-Fa-f]{2}\\{1,8}u[dD][c-fC-F][0-9A-Fa-f]{2}",
    r"\\{1,8}(?:u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]{1,6}\}|U[0-9A-Fa-f]{8}|x[0-9A-Fa-f]{2}|[01][0-7]{2})",
    r"%(?:[2-7][0-9A-Fa-f]|[c-fC-F][0-9A-Fa-f](?:%[89abAB][0-9A-Fa-f]){1,3})",
)
_ESCAPES_BY_SIGN = (
    ("&", re.compile(_ESCAPE_PATTERNS[0])),
    ("\\", re.compile(rf"{_ESCAPE_PATTERNS[1]}|{_ESCAPE_PATTERNS[2]}")),
    ("%", re.compile(_ESCAPE_PATTERNS[3])),
)
_SURROGATE_PAIR = re.compile(r"\\+u([0-9A-Fa-f]{4})\\+u([0-9A-Fa-f]{4})")
_ESCAPE = re.compile("|".join(_ESCAPE_PATTERNS))
_QUOTED_PRINTABLE = re.compile(r"=(?:[2-7][0-9A-Fa-f]|[c-fC-F][0-9A-Fa-f](?:=[89abAB][0-9A-Fa-f]){1,3}|\r?\n)")
_CLEARLY_QUOTED_PRINTABLE = re.compile(r"=(?:5F|2D|3D|5f|2d|3d|[2-7][0-9A-Fa-f]=[2-7][0-9A-Fa-f]|\r?\n)")
_ESCAPE_OR_QUOTED_PRINTABLE = re.compile("|".join([*_ESCAPE_PATTERNS, _QUOTED_PRINTABLE.pattern]))
_CONTROL = "\\x00-\\x08\\x0e-\\x1b\\x7f"
_INVISIBLE = (
    # Default-ignorable characters of Unicode, characters of the category Cf, controls, and marks over a letter
    _CONTROL + "\x80-\x84\x86-\x9f\u00ad\u0300-\u036f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u1ab0-\u1aff\u1dc0-"
    "\u1dff\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20d0-\u20ff\u3164\ufe00-\ufe0f\ufe20-\ufe2f\ufeff\uffa0\ufff9-"
    "\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_CONTROLS = re.compile(f"[{_CONTROL}]")
_INVISIBLE_INSIDE_WORD = re.compile(f"(?<=[!-~])[{_INVISIBLE}]{{1,200}}(?=[!-~])")
_INVISIBLE_RUN = re.compile(f"[{_INVISIBLE}]+")
_ALTERNATE_FORM_RANGES = ((0x2B0, 0x3000), (0xA600, 0xAC00), (0xFF00, 0xFFF0), (0x10400, 0x1FC00))
_PUNCTUATION = "_@.-:/=+#&;%"
"""Characters of keys and addresses. Their full-width forms are decoded, but do not count as a disguise."""


@dataclass(frozen=True)
class DecodedText:
    """A decoded text, with the start and end of each character in the original."""

    text: str
    starts: "array[int]"
    ends: "array[int]"

    def locate(self, match: TextMatch) -> TextMatch:
        """Return a match in this text as a match in the original."""
        return replace(match, start=self.starts[match.start], end=self.ends[match.end - 1])


def is_disguised(text: str) -> bool:
    """Return False only if decoding cannot change a text. This is cheaper than decoding."""
    if text.isascii():
        if _CONTROLS.search(text):
            return True
    elif _INVISIBLE_INSIDE_WORD.search(text) or not _disguised_letters().isdisjoint(set(text)):
        return True
    for sign, pattern in _ESCAPES_BY_SIGN:
        if sign in text and pattern.search(text):
            return True
    return _is_quoted_printable(text)


def may_be_disguised_part(text: str) -> bool:
    """Return False only if decoding cannot change a text in whatever longer text it occurs."""
    if text.isascii():
        if _CONTROLS.search(text):
            return True
    elif _INVISIBLE_RUN.search(text) or not _ascii_equivalents().keys().isdisjoint(text):
        return True
    has_escape = any(sign in text and pattern.search(text) for sign, pattern in _ESCAPES_BY_SIGN)
    return has_escape or ("=" in text and (_QUOTED_PRINTABLE.search(text) is not None or text.endswith("=")))


def decode_text(text: str, quoted_printable: bool | None = None) -> DecodedText | None:
    """Return the decoded form of a text; None if it is equal to the text.

    `quoted_printable` says whether its codes are decoded; by default they are if the text clearly looks like it.
    """
    decoded = DecodedText(text, array("q", range(len(text))), array("q", range(1, len(text) + 1)))
    if quoted_printable is None:
        quoted_printable = _is_quoted_printable(text)
    pattern = _ESCAPE_OR_QUOTED_PRINTABLE if quoted_printable else _ESCAPE
    for _ in range(_MAX_DECODING_ROUNDS):  # a code may contain a code: &amp;#103; or %2567
        new = _decode_escapes(_normalize_characters(decoded), pattern)
        if new.text == decoded.text:
            break
        decoded = new
    decoded = _normalize_characters(decoded)
    return None if decoded.text == text else decoded


def _is_quoted_printable(text: str) -> bool:
    """Return whether a text looks like quoted-printable: a soft line break, a coded sign, or two codes in a row."""
    return "=" in text and _CLEARLY_QUOTED_PRINTABLE.search(text) is not None


def _decode_escapes(decoded: DecodedText, pattern: re.Pattern[str]) -> DecodedText:
    """Replace each code by its character. A code without a valid character remains."""
    text, starts, ends = [], array("q"), array("q")
    at = 0
    for match in pattern.finditer(decoded.text):
        new = _decode_escape(match[0])
        if new is None:
            continue
        begin, end = match.span()
        # Copy the text before the code; each new character has the start and the end of the whole code.
        text += [decoded.text[at:begin], new]
        starts += decoded.starts[at:begin]
        ends += decoded.ends[at:begin]
        starts.extend([decoded.starts[begin]] * len(new))
        ends.extend([decoded.ends[end - 1]] * len(new))
        at = end
    if not at:
        return decoded
    text.append(decoded.text[at:])
    return DecodedText("".join(text), starts + decoded.starts[at:], ends + decoded.ends[at:])


def _decode_escape(code: str) -> str | None:
    """Return the character of a code; None if it is not a valid code."""
    if code[0] == "&":
        character = html.unescape(code)
        return character if len(character) == 1 else None
    if code[0] == "=" and code[1] in "\r\n":
        return ""
    if len(code) > 3 and code[0] in "%=":
        character = bytes.fromhex(code.replace(code[0], "")).decode("utf-8", "replace")
        return character if len(character) == 1 and character != "\ufffd" else None
    halves = _SURROGATE_PAIR.fullmatch(code)
    if halves:
        return chr(0x10000 + ((int(halves[1], 16) & 0x3FF) << 10) + (int(halves[2], 16) & 0x3FF))
    digits = code.lstrip("\\").strip("uUx{}%=")
    octal = code[0] == "\\" and code[-4:-3] == "\\" and code[-3].isdigit()
    number = int(digits, 8 if octal else 16)
    if number >= 0x110000 or 0xD800 <= number < 0xE000:
        return None
    return chr(number)


def _normalize_characters(decoded: DecodedText) -> DecodedText:
    """Remove invisible characters, and write other forms of letters and digits in ASCII."""
    text = decoded.text
    if text.isascii() and not _CONTROLS.search(text):
        return decoded
    table = _ascii_equivalents()
    hidden = set(chain.from_iterable(range(*match.span()) for match in _INVISIBLE_RUN.finditer(text)))
    visible = [i for i in range(len(text)) if i not in hidden]
    return DecodedText(
        "".join(table.get(text[i], text[i]) for i in visible),
        array("q", (decoded.starts[i] for i in visible)),
        array("q", (decoded.ends[i] for i in visible)),
    )


@cache
def _ascii_equivalents() -> dict[str, str]:
    """Return the ASCII form of other letters, digits and signs: full-width, mathematical, digits of other scripts."""
    table = {}
    for character in (chr(code) for first, end in _ALTERNATE_FORM_RANGES for code in range(first, end)):
        plain = unicodedata.normalize("NFKC", character)
        digit = unicodedata.decimal(character, None)
        if digit is not None:
            plain = str(digit)
        if len(plain) == 1 and plain.isascii() and (plain.isalnum() or plain in _PUNCTUATION):
            table[character] = plain
    return table


@cache
def _disguised_letters() -> frozenset[str]:
    """Return the characters of the table whose ASCII form is a letter, a digit, `_` or `@`."""
    return frozenset(c for c, plain in _ascii_equivalents().items() if plain.isalnum() or plain in "_@")
