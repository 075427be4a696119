"""The stretch of a text that cannot be sent yet, and where it ends so that no value crosses its end.

A stretch begins with a token that is not an ordinary word. It ends where every value has ended: at an ordinary word
that cannot continue a broken key or an account number, at a sign such as a comma before a blank, at a quotation mark,
at a Chinese letter, at a long gap, and at a line feed outside of broken keys.
"""

import itertools

from lora_chat.audit.sensitive.normalize import decode_text, may_be_disguised_part
from lora_chat.serving.reply_filter.pieces import MAX_GAP_CHARACTERS, Piece, may_contain_open_key, read_piece

MIN_VALUE_CHARACTERS = 6
"""Length of the shortest value of any detector, in characters."""
MAX_STRETCH_CHARACTERS = 2_048
"""Number of characters other than blanks after which the first part of a stretch is checked and sent."""
KEPT_CHARACTERS = 700
"""Number of characters other than blanks at the end of a long stretch that are kept back. The longest key of a known
length has 300."""
_MIN_SEARCHED_CHARACTERS = 48
"""Minimum length of a stretch that is searched before the reply ends, because each search costs some time."""
_MOBILE_LOOKAHEAD_CHARACTERS = 40
"""Number of characters after a mobile number in which Chinese letters make it a finding."""
_MAX_URL_CHARACTERS = 200
"""Number of characters after `://` in which a password may follow."""


class Stretch:
    """The state of the text since the last cut, updated unit by unit. Offsets count from the cut."""

    def __init__(self) -> None:
        self.end = 0
        self.weight = 0
        """Number of characters other than blanks since the first token that is not an ordinary word."""
        self.is_suspicious = False
        self.is_in_key = False
        """Whether the stretch continues a key that is broken by blanks and that is dropped."""
        self.ends_plainly = True
        """Whether the last unit is not a part of a value."""
        self._chain_length = 0
        """Length of the last part of a key that may be broken by blanks; -1 if unknown, 0 without such a key."""
        self._gap = ""
        self._has_soft_break = False
        self._last_can_break = False
        self._needed_end = 0
        self._url_start = -_MAX_URL_CHARACTERS

    def restart(self, removed: int) -> None:
        """Move the offsets after a cut. The state of a broken key continues, because it does not look back."""
        self.end = max(0, self.end - removed)
        self._needed_end -= removed
        self._url_start -= removed
        self.is_suspicious, self.weight = False, 0

    def keep(self, text: str) -> None:
        """Continue with the end of a stretch, which is this text, after its first part was sent."""
        self.is_suspicious, self.weight = True, sum(not c.isspace() for c in text)

    def add_blanks(self, unit: str, text: str) -> bool:
        """Add a gap, or a part of one. Return whether the stretch can end after it; `text` is the stretch with it."""
        self.end += len(unit)
        self.ends_plainly = True
        self._gap += unit
        self._url_start = -_MAX_URL_CHARACTERS
        self._has_soft_break = self._last_can_break and self._gap.startswith(("\n", "\r\n"))
        if len(self._gap) > MAX_GAP_CHARACTERS:
            self._gap = self._gap[: MAX_GAP_CHARACTERS + 1]
            self._chain_length = 0
            return self._may_end()
        is_line_end = self.is_suspicious and "\n" in unit and (not self._has_soft_break or self._chain_length < 0)
        if not is_line_end or self.is_in_key or not self._may_end() or _may_be_continued(text):
            return False
        self._chain_length, self._has_soft_break = 0, False
        return True

    def add_sign(self, is_wide: bool) -> bool:
        """Add a Chinese letter or a quotation mark. Return whether the stretch can end after it."""
        is_in_url = is_wide and self.end - self._url_start < _MAX_URL_CHARACTERS
        self.end += 1
        self._gap, self._chain_length, self._last_can_break = "", 0, False
        self.ends_plainly = not is_in_url
        if is_in_url:
            self._suspect(1)
            return False
        self._url_start = -_MAX_URL_CHARACTERS
        return self._may_end()

    def add_token(self, token: str, is_distinctive: bool) -> bool:
        """Add a token. Return whether the stretch can end after it.

        `is_distinctive` says that it may be one of the values that were replaced before.
        """
        piece = read_piece(token)
        is_linked = self._is_linked(piece)
        self.end += len(token)
        is_whole = len(piece.trail) == len(token)
        is_chained = piece.is_key_part or (is_whole and is_linked)
        self._chain_length = (-1 if piece.is_disguised else len(piece.trail)) if is_chained else 0
        self._last_can_break = token.endswith("=") or piece.is_disguised
        self._gap, self._has_soft_break = "", False
        if "://" in token or piece.is_disguised:
            self._url_start = self.end
        if piece.may_be_mobile:
            self._needed_end = self.end + _MOBILE_LOOKAHEAD_CHARACTERS
        self.ends_plainly = piece.is_plain and not is_linked and not is_chained and not is_distinctive
        if self.ends_plainly:
            self.weight += len(token) if self.is_suspicious else 0
            return (piece.ends_number_groups or not self.is_suspicious) and self._may_end()
        self._suspect(len(token))
        return piece.closes and self._may_end()

    def _is_linked(self, piece: Piece) -> bool:
        """Return whether a token continues a key that is broken by the gap before it."""
        if self._has_soft_break:
            return True
        return bool(self._gap) and self._chain_length != 0 and piece.continues(self._chain_length)

    def _suspect(self, weight: int) -> None:
        self.is_suspicious = True
        self.weight += weight

    def _may_end(self) -> bool:
        """Return whether enough of the text after the last number is known, and a search is worth its time."""
        if self.weight >= MIN_VALUE_CHARACTERS and self.end < _MIN_SEARCHED_CHARACTERS:
            return False
        return self.end >= self._needed_end


def _may_be_continued(text: str) -> bool:
    """Return whether a text that ends with a line feed may contain a part of a value that the next line continues."""
    if may_contain_open_key(text):
        return True
    decoded = decode_text(text, quoted_printable=True) if may_be_disguised_part(text) else None
    if decoded is None:
        return False
    return "\n" not in decoded.text[-MAX_GAP_CHARACTERS:] or may_contain_open_key(decoded.text)


def split_long_stretch(text: str) -> int:
    """Return the offset, after a blank if there is one, of the part at the end of a long stretch that is kept back.

    Return 0 if a value of usual length can fill the stretch, because it is written in codes.
    """
    decoded = decode_text(text, quoted_printable=True) if may_be_disguised_part(text) else None
    shown = decoded.text if decoded else text
    weight, at = 0, len(shown)
    while at and weight < KEPT_CHARACTERS:
        at -= 1
        weight += not shown[at].isspace()
    cut = decoded.starts[at] if decoded and at else at
    blank = max(text.rfind(sign, 0, cut) for sign in " \n\t")
    return blank + 1 if blank > 0 else cut


def offset_of_character(text: str, number: int) -> int:
    """Return the offset of a character, counted from 0 without blanks."""
    offsets = (offset for offset, character in enumerate(text) if not character.isspace())
    return next(itertools.islice(offsets, number, None), len(text))
