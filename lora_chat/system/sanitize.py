"""Filters for strangers' text, so that printing it cannot move the cursor or change colours or direction."""

import unicodedata

_JOINERS = frozenset("\u200c\u200d")
"""Zero-width joiner and non-joiner, which emoji, Persian and Indian scripts need."""
_SELECTORS = frozenset(
    [*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0)), "\u180b", "\u180c", "\u180d", "\u180f"]
)
"""Variation selectors, which choose between two glyphs of the character before them."""
_INVISIBLE_CHARACTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Invisible letters and marks that Unicode does not class as format characters."""
_KEYCAPS = frozenset("0123456789#*")
_BASE, _KEYCAP, _SELECTOR, _OTHER = "base", "keycap", "selector", "other"


class TextFilter:
    """Filter that replaces control characters by escapes, piece by piece.

    A piece may end inside an escape sequence, because each control character is replaced separately. Only joiners and
    variation selectors depend on the character before them, which is remembered.
    """

    def __init__(self, *, allowed: str = "\n\t", joiners: bool = True) -> None:
        self._allowed = frozenset(allowed)
        self._joiners = joiners
        self._before = _OTHER

    def feed(self, text: str) -> str:
        """Return the piece with escapes in place of control characters and invisible characters."""
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
    """Return text on one line, with control characters and line feeds as escapes, cut to `limit` characters."""
    cut = text if limit is None or len(text) <= limit else text[: limit - 3] + "..."
    return TextFilter(allowed="", joiners=False).feed(cut)


def sanitize_lines(text: str) -> str:
    """Return text with control characters as escapes; line feeds are kept."""
    return TextFilter(allowed="\n", joiners=False).feed(text)


def sanitize_text(text: str) -> str:
    """Return text with control characters as escapes; line feeds, tabs, and joiners that some scripts need are kept."""
    return TextFilter().feed(text)
