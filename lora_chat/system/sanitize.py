"""Foreign text that can be printed: nothing in it moves the cursor, changes colours or turns the direction."""

import unicodedata

_JOINERS = frozenset("\u200c\u200d")
"""Zero-width joiner and non-joiner: emoji, Persian and the scripts of India are not written without them."""
_SELECTORS = frozenset(
    [*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0)), "\u180b", "\u180c", "\u180d", "\u180f"]
)
"""Variation selectors: they choose between two looks of the character before them."""
_INVISIBLE_CHARACTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Letters and marks that look like nothing; Unicode does not class them as format characters."""
_KEYCAPS = frozenset("0123456789#*")
_BASE, _KEYCAP, _SELECTOR, _OTHER = "base", "keycap", "selector", "other"


class TextFilter:
    """Shows text piece by piece as it can be printed.

    A piece may end anywhere, inside an escape sequence too: each control character is replaced for itself. Only
    joiners and variation selectors depend on the character before them, which is remembered.
    """

    def __init__(self, *, allowed: str = "\n\t", joiners: bool = True) -> None:
        self._allowed = frozenset(allowed)
        self._joiners = joiners
        self._before = _OTHER

    def feed(self, text: str) -> str:
        """Return the piece with every character that acts or hides written as its escape."""
        if text.isascii() and text.isprintable():
            if text:
                self._before = _KEYCAP if text[-1] in _KEYCAPS else _OTHER
            return text
        return "".join(map(self._escape, text))

    def _escape(self, character: str) -> str:
        before, self._before = self._before, _OTHER
        if character in _JOINERS:
            if self._joiners and before in (_BASE, _SELECTOR):
                return character
        elif character in _SELECTORS:
            if before in (_BASE, _KEYCAP):
                self._before = _SELECTOR
                return character
        elif character in self._allowed or unicodedata.category(character) == "Zs":
            return character
        elif character.isprintable() and character not in _INVISIBLE_CHARACTERS:
            self._before = _BASE if not character.isascii() else _KEYCAP if character in _KEYCAPS else _OTHER
            return character
        # Cc control, Cf format (direction marks among them), Cs half pairs, Co private, Zl and Zp separators.
        return character.encode("unicode_escape").decode("ascii")


def sanitize_line(text: str, limit: int | None = None) -> str:
    """Control characters as escapes, line feeds as such escapes too; cut to `limit` characters."""
    cut = text if limit is None or len(text) <= limit else text[: limit - 3] + "..."
    return TextFilter(allowed="", joiners=False).feed(cut)


def sanitize_lines(text: str) -> str:
    """The same, with its line feeds."""
    return TextFilter(allowed="\n", joiners=False).feed(text)


def sanitize_text(text: str) -> str:
    """The same, with its line feeds, tabs, and the joiners without which some scripts cannot be written."""
    return TextFilter().feed(text)
