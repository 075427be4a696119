"""Escape untrusted text for Markdown, so that it stays plain text."""

import re
from collections.abc import Iterable, Sequence

from lora_chat.system.sanitize import sanitize_line

_MARKUP_PATTERN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$:@=\"'])")


def escape_markdown(text: str, limit: int = 200) -> str:
    """Return untrusted text as one line of Markdown without links, marks, HTML, mentions or line breaks."""
    return _MARKUP_PATTERN.sub(r"\\\1", sanitize_line(text, limit)).replace("www.", "www\\.")


def format_code(text: str, limit: int = 200) -> str:
    """Return untrusted text as inline code, between more backticks than it contains."""
    code = sanitize_line(text, limit).replace("|", "¦")
    fence = "`" * (max(map(len, re.findall("`+", code)), default=0) + 1)
    return f"{fence} {code} {fence}" if "`" in code or code != code.strip() or not code else f"`{code}`"


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; its cells are Markdown already."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def format_code_block(text: str) -> list[str]:
    """Return the lines of a code block, fenced with more backticks than the text contains."""
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return [fence, text, fence]
