"""Masked excerpts of findings, which show enough to recognise a secret and not enough to use it."""

import re
from collections.abc import Sequence

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.scan import find_sensitive

_CONTEXT_CHARACTERS = 24
_POSSIBLE_SECRET = re.compile(r"[A-Za-z0-9+/=_-]{16,}|[0-9](?:[ .()/-]{0,2}[0-9]){6,}")
"""Values in no known format that may be secrets. They are hidden in the context of a finding."""


def mask_secret(secret: str) -> str:
    """Return the first characters, at most four and at most a quarter of all, and the length."""
    return f"{secret[: min(4, len(secret) // 4)]}…({len(secret)})"


def make_excerpt(text: str, match: TextMatch, sensitive: Sequence[TextMatch] | None = None) -> str:
    """Return one printable line with the match, masked if it is confidential, and a few characters around it.

    `sensitive` are the secrets and personal data in the text, if they are known already.
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
    """Return the first words of a text, masked."""
    shown = _mask_sensitive(text, 0, 90, sensitive)
    return make_printable(shown[:48] + ("…" if len(shown) > 48 else ""))


def make_printable(text: str) -> str:
    """Return a text without characters that move the cursor of a terminal, change its colours or hide text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)


def _mask_sensitive(text: str, start: int, end: int, hidden: Sequence[TextMatch]) -> str:
    """Return text[start:end] with every secret masked, including one that is only partly in it."""
    parts, at = [], start
    for match in hidden:
        if match.end > at and match.start < end:
            parts.append(_POSSIBLE_SECRET.sub("…", text[at : max(at, match.start)]))
            parts.append("…" if match.start < start or match.end > end else mask_secret(text[match.start : match.end]))
            at = match.end
    parts.append(_POSSIBLE_SECRET.sub("…", text[at : max(at, end)]))
    return "".join(parts)
