"""Keys, tokens, private keys and passwords in a text."""

import re
from collections.abc import Iterator

from lora_chat.audit.findings import Match
from lora_chat.audit.sensitive.assigned_secrets import find_assigned_secrets
from lora_chat.audit.sensitive.key_formats import KEY_FORMATS
from lora_chat.audit.sensitive.placeholders import entropy, is_placeholder

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?=(?:[^-]|-(?!----)){40})"
    r"(?:[^-]|-(?!----)){40,20000}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)


def find_secrets(text: str, lower: str) -> Iterator[Match]:
    """Secrets in any order, perhaps overlapping; `lower` is the text in lower case."""
    if "PRIVATE KEY" in text:
        for found in _PRIVATE_KEY.finditer(text):
            if not is_placeholder(found[0].split("-----")[2].strip()[:400]):
                yield Match("secret", "private key", found.start(), found.end(), "[PRIVATE KEY]")
    for key in KEY_FORMATS:
        if any(word in text for word in key.keywords):
            for found in key.pattern.finditer(text):
                if not is_placeholder(found[0]) and entropy(found[0]) > 2.8:
                    yield Match("secret", key.detail, found.start(), found.end(), "[SECRET]")
    yield from find_assigned_secrets(text, lower)
