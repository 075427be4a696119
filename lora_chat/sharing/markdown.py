"""Foreign text in Markdown: it stays text, whatever marks it holds."""

import re
from collections.abc import Iterable, Sequence

from lora_chat.system.sanitize import sanitize_line

_MARKUP_PATTERN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$:@=\"'])")


def escape_markdown(text: str, limit: int = 200) -> str:
    """Foreign text as one line of Markdown that is nothing but text: no links, marks, HTML, mentions or new lines."""
    return _MARKUP_PATTERN.sub(r"\\\1", sanitize_line(text, limit)).replace("www.", "www\\.")


def format_code(text: str, limit: int = 200) -> str:
    """The same as code, between more backticks than it holds."""
    shown = sanitize_line(text, limit).replace("|", "¦")
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    return f"{fence} {shown} {fence}" if "`" in shown or shown != shown.strip() or not shown else f"`{shown}`"


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table; its cells are Markdown already."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def format_code_block(text: str) -> list[str]:
    """Lines of code or foreign text, between more backticks than it holds."""
    fence = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return [fence, text, fence]
