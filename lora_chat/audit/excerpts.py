"""What is shown of a finding: enough to recognise it, not enough to use it."""

import re
from collections.abc import Sequence

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.scan import find_sensitive

_CONTEXT_CHARACTERS = 24
_POSSIBLE_SECRET = re.compile(r"[A-Za-z0-9+/=_-]{16,}|[0-9](?:[ .()/-]{0,2}[0-9]){6,}")
"""What might be a secret that no format knows: it is not shown beside another."""


def mask_secret(secret: str) -> str:
    """The first characters, four at most and never more than a quarter, and the length."""
    return f"{secret[: min(4, len(secret) // 4)]}…({len(secret)})"


def make_excerpt(text: str, match: TextMatch, sensitive: Sequence[TextMatch] | None = None) -> str:
    """One printable line: the match, masked if it may not be shown, with a little of what stands around it.

    `sensitive` are the text's secrets and personal data, if they are known already.
    """
    hidden = list(find_sensitive(text) if sensitive is None else sensitive)
    shown = text[match.start : match.end]
    if match.kind in ("secret", "possible_secret", "personal_data", "abusive_language"):
        middle = mask_secret(shown)
    else:
        middle = _mask_sensitive(text, match.start, min(match.end, match.start + 40), hidden)
    before = _mask_sensitive(text, max(0, match.start - 200), match.start, hidden)
    after = _mask_sensitive(text, match.end, match.end + 200, hidden)
    left = ("…" if match.start > _CONTEXT_CHARACTERS else "") + before[-_CONTEXT_CHARACTERS:]
    right = after[:_CONTEXT_CHARACTERS] + ("…" if len(text) - match.end > _CONTEXT_CHARACTERS else "")
    return make_printable(left + middle + right)


def make_opening(text: str, sensitive: Sequence[TextMatch]) -> str:
    """The first words of a text, masked."""
    shown = _mask_sensitive(text, 0, 90, sensitive)
    return make_printable(shown[:48] + ("…" if len(shown) > 48 else ""))


def make_printable(text: str) -> str:
    """Without characters that move a terminal's cursor, change its colours or hide text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)


def _mask_sensitive(text: str, start: int, end: int, hidden: Sequence[TextMatch]) -> str:
    """The stretch with every secret in it masked, also one that only begins or ends in it."""
    parts, at = [], start
    for match in hidden:
        if match.end > at and match.start < end:
            parts.append(_POSSIBLE_SECRET.sub("…", text[at : max(at, match.start)]))
            parts.append("…" if match.start < start or match.end > end else mask_secret(text[match.start : match.end]))
            at = match.end
    parts.append(_POSSIBLE_SECRET.sub("…", text[at : max(at, end)]))
    return "".join(parts)
