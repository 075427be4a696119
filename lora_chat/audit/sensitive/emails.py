"""E-mail addresses."""

import re
from collections.abc import Iterator

from lora_chat.audit.report import TextMatch

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+@/-])[A-Za-z0-9_][A-Za-z0-9._%+'-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,40})(?![A-Za-z0-9@:])(?!-\w)"
)
_RESERVED_DOMAIN = re.compile(
    r"(?:^|[.@])(?:example\.(?:com|net|org|edu)|example|test|invalid|localhost|local)$", re.IGNORECASE
)
"""RFC 2606 and RFC 6761: these domains belong to no one."""
_FILE_EXTENSIONS = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "css",
        "js",
        "ts",
        "json",
        "yaml",
        "yml",
        "html",
        "pdf",
        "mp4",
        "md",
        "txt",
    ]
)


def find_emails(text: str) -> Iterator[TextMatch]:
    """Addresses with a top-level domain, except those of domains reserved for examples."""
    if "@" not in text:
        return
    for found in _EMAIL.finditer(text):
        if not _RESERVED_DOMAIN.search(found[0]) and found[1].lower() not in _FILE_EXTENSIONS:
            yield TextMatch("personal_data", "e-mail", found.start(), found.end(), "[E-MAIL]")
