"""E-mail addresses."""

import re
from collections.abc import Iterator

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.examples import load_examples

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+@/-])[A-Za-z0-9_][A-Za-z0-9._%+'-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,40})(?![A-Za-z0-9@:])(?!-\w)"
)
_RESERVED_DOMAIN = re.compile(
    r"(?:^|[.@])(?:example\.(?:com|net|org|edu)|example|test|invalid|localhost|local)$", re.IGNORECASE
)
"""Pattern of the domains that RFC 2606 and RFC 6761 reserve for examples."""


def find_emails(text: str) -> Iterator[TextMatch]:
    """Yield the addresses with a top-level domain, except those in domains reserved for examples."""
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        if not _RESERVED_DOMAIN.search(match[0]) and match[1].lower() not in load_examples().file_extensions:
            yield TextMatch("personal_data", "e-mail", match.start(), match.end(), "[E-MAIL]")
