"""Keys, tokens, private keys and passwords in a text."""

import re
from collections.abc import Iterable, Iterator

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.assigned_secrets import entropy, find_assigned_secrets
from lora_chat.audit.sensitive.examples import is_placeholder
from lora_chat.audit.sensitive.key_formats import KeyFormat, load_key_formats

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?=(?:[^-]|-(?!----)){40})"
    r"(?:[^-]|-(?!----)){40,20000}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)
_MAX_TOUCHING_CHARACTERS = 40
"""Maximum number of letters, digits and underscores that touch a key on one side."""
_WORD_BEFORE = re.compile(r"\w+\Z", re.ASCII)
_WORD_AFTER = re.compile(r"\w+", re.ASCII)


def find_secrets(text: str, lower: str | None) -> Iterator[TextMatch]:
    """Yield secrets in any order, which may overlap; `lower` is the text in lower case, or None without cheap tests."""
    if "PRIVATE KEY" in text:
        for match in _PRIVATE_KEY.finditer(text):
            if not is_placeholder(match[0].split("-----")[2].strip()[:400]):
                yield TextMatch("secret", "private key", match.start(), match.end(), "[PRIVATE KEY]")
    yield from find_keys(text, load_key_formats())
    yield from find_assigned_secrets(text, lower)


def find_keys(text: str, formats: Iterable[KeyFormat]) -> Iterator[TextMatch]:
    """Yield the keys in one of the formats."""
    for key_format in formats:
        if any(word in text for word in key_format.keywords):
            for match in key_format.regex.finditer(text):
                is_random = not is_placeholder(match[0]) and entropy(match[0]) > 2.8
                if is_random and _has_plausible_context(text, match):
                    yield TextMatch("secret", key_format.detail, match.start(), match.end(), "[SECRET]")


def _has_plausible_context(text: str, match: re.Match[str]) -> bool:
    """Return whether a key touches no text, or has a digit and touches few letters, unlike a run of base64."""
    before = _WORD_BEFORE.search(text, max(0, match.start() - _MAX_TOUCHING_CHARACTERS - 1), match.start())
    after = _WORD_AFTER.match(text, match.end(), match.end() + _MAX_TOUCHING_CHARACTERS + 1)
    touching = len(before[0] if before else ""), len(after[0] if after else "")
    if touching == (0, 0):
        return True
    return max(touching) <= _MAX_TOUCHING_CHARACTERS and any(c.isdigit() for c in match[0])
