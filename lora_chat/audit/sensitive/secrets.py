"""Keys, tokens, private keys and passwords in a text."""

import re
from collections.abc import Iterable, Iterator

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.assigned_secrets import entropy, find_assigned_secrets, is_placeholder
from lora_chat.audit.sensitive.key_formats import KEY_FORMATS, KeyFormat

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?=(?:[^-]|-(?!----)){40})"
    r"(?:[^-]|-(?!----)){40,20000}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)
_MAX_TOUCHING_CHARACTERS = 40
"""Most letters, digits and underscores that may touch a key on one side."""
_WORD_BEFORE = re.compile(r"\w+\Z", re.ASCII)
_WORD_AFTER = re.compile(r"\w+", re.ASCII)


def find_secrets(text: str, lower: str) -> Iterator[TextMatch]:
    """Secrets in any order, perhaps overlapping; `lower` is the text in lower case."""
    if "PRIVATE KEY" in text:
        for found in _PRIVATE_KEY.finditer(text):
            if not is_placeholder(found[0].split("-----")[2].strip()[:400]):
                yield TextMatch("secret", "private key", found.start(), found.end(), "[PRIVATE KEY]")
    yield from find_keys(text, KEY_FORMATS)
    yield from find_assigned_secrets(text, lower)


def find_keys(text: str, formats: Iterable[KeyFormat]) -> Iterator[TextMatch]:
    """Yield the keys that are in one of the formats."""
    for key in formats:
        if any(word in text for word in key.keywords):
            for found in key.pattern.finditer(text):
                if (
                    not is_placeholder(found[0])
                    and entropy(found[0]) > 2.8
                    and _has_plausible_surroundings(text, found)
                ):
                    yield TextMatch("secret", key.detail, found.start(), found.end(), "[SECRET]")


def _has_plausible_surroundings(text: str, found: re.Match[str]) -> bool:
    """Return whether a key stands alone, or has a digit and few letters around it, as no long run of base64 does."""
    before = _WORD_BEFORE.search(text, max(0, found.start() - _MAX_TOUCHING_CHARACTERS - 1), found.start())
    after = _WORD_AFTER.match(text, found.end(), found.end() + _MAX_TOUCHING_CHARACTERS + 1)
    around = len(before[0] if before else ""), len(after[0] if after else "")
    if around == (0, 0):
        return True
    return max(around) <= _MAX_TOUCHING_CHARACTERS and any(c.isdigit() for c in found[0])
