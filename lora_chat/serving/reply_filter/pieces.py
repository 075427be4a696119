"""The words of a text, and whether they can be a part of a secret that was found or is still being written."""

import re
import string
from dataclasses import dataclass
from functools import cache

from lora_chat.audit.sensitive.hidden_keys import load_breakable_formats, looks_like_key_part
from lora_chat.audit.sensitive.normalize import may_be_disguised_part

MAX_TOKEN_CHARACTERS = 4_096
"""Longest text without a blank that is checked, in characters. Longer ones are replaced by a mark."""
MAX_GAP_CHARACTERS = 40
"""Longest gap of blanks inside a broken key, in characters."""
_WIDE = (
    "\u0900-\u0965\u0970-\u09e5\u0e01-\u0e4f\u3001-\u303f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
    "\uff01\uff0c\uff1a\uff1b\uff1f"
)
"""Characters of scripts that do not divide words by blanks, and their punctuation. Digits are not among them."""
UNIT = re.compile(rf"\s{{1,{MAX_GAP_CHARACTERS + 1}}}|[{_WIDE}]|[\"<>]|[^\s\"<>{_WIDE}]{{1,{MAX_TOKEN_CHARACTERS}}}")
"""Pattern of the units of a text: blanks, one wide character, one sign that no value contains, or a token."""
TOKEN_END = re.compile(rf"[\s\"<>{_WIDE}]")
_KEY_CHARACTERS = string.ascii_letters + string.digits + "_.~+/=-"
_CLOSING_SIGNS = ",;:!?|'`}]>*…"
"""Signs that end a token and with it every value, because a blank follows."""
_PLAIN = re.compile(r"[(\['“„«‘’*`{]{0,3}[^\W\d_](?:[^\W\d_A-Z]|['’-](?=[^\W\d_A-Z])){0,19}[)\]'”“»’*`}.,;:!?…|]{0,4}")
_WORD_START = re.compile(r"[A-Za-z0-9]*")
_SINGLE_SIGNS = re.compile(r"[—–|*#>•·…,;:!?-]{1,3}")
_CHINESE_MOBILE = re.compile(r"1[3-9][0-9]{9}")
_OTHER_OPENINGS = (
    *("discord.com/api/webhooks/", "discordapp.com/api/webhooks/"),
    *("sk_live_", "rk_live_", "sk_test_", "rk_test_", "dop_v1_", "doo_v1_", "dor_v1_"),
)
"""Beginnings of keys whose keyword is not their first part."""


@dataclass(frozen=True)
class Piece:
    """A token, and its two ends, which may be parts of a key that is broken by blanks."""

    length: int
    is_plain: bool
    """Whether it is an ordinary word, which no value begins with and no value ends with, unless it continues a key."""
    is_disguised: bool
    """Whether a part of it may be written in another spelling, so that nothing is known about it."""
    lead: str
    trail: str
    closes: bool
    """Whether it ends with a sign that ends every value."""
    ends_number_groups: bool
    """Whether it cannot be a group of letters in an account number."""
    may_be_mobile: bool
    """Whether Chinese letters after it can make it a phone number."""

    @property
    def is_key_part(self) -> bool:
        """Return whether a broken key can begin with the end of this token."""
        return self.is_disguised or (bool(self.trail) and looks_like_key_part(self.trail))

    def continues(self, trail_length: int) -> bool:
        """Return whether this token can continue a broken key whose last part has this length; -1 is any length."""
        if self.is_disguised:
            return True
        if not self.lead:
            return False
        return trail_length < 0 or len(self.lead) == trail_length <= 8 or looks_like_key_part(self.lead)


def read_piece(token: str) -> Piece:
    """Return the properties of a token."""
    is_disguised = may_be_disguised_part(token)
    is_plain = not is_disguised and (_PLAIN.fullmatch(token) or _SINGLE_SIGNS.fullmatch(token)) is not None
    first_word = _WORD_START.match(token)
    length = len(first_word[0]) if first_word else 0
    return Piece(
        length=len(token),
        is_plain=is_plain,
        is_disguised=is_disguised,
        lead=token[: len(token) - len(token.lstrip(_KEY_CHARACTERS))],
        trail=token[len(token.rstrip(_KEY_CHARACTERS)) :],
        closes=token[-1] in _CLOSING_SIGNS and not is_disguised,
        ends_number_groups=is_plain and (length == 0 or length > 4) and not _SINGLE_SIGNS.fullmatch(token),
        may_be_mobile=is_disguised or _CHINESE_MOBILE.search(token) is not None,
    )


def may_contain_open_key(text: str) -> bool:
    """Return False only if no key that is broken by blanks can begin in a text and end after it."""
    joined = "".join(text.split())
    openings = _load_openings()
    if any(opening in joined for opening in openings):
        return True
    longest = max(map(len, openings))
    ends = [joined[-length:] for length in range(1, min(longest, len(joined)) + 1)]
    return any(opening.startswith(end) for end in ends for opening in openings)


@cache
def _load_openings() -> tuple[str, ...]:
    """Return the beginnings of keys that can be broken by blanks."""
    words = {word for key_format in load_breakable_formats() for word in key_format.keywords}
    return (*sorted(words), *_OTHER_OPENINGS)
