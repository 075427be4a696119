"""One row of a file, as it stands there."""

import json
from dataclasses import dataclass
from typing import Any

from lora_chat.system.bounded_files import parse_bounded_json


@dataclass(frozen=True)
class RawRow:
    """One row of a file, or one blank line of it."""

    line: int
    """Where it begins, counted from 1; in Parquet the row's number."""
    value: Any = None
    fault: str | None = None
    """Why it cannot be read."""
    blank: bool = False
    raw: bytes | None = None
    """A line of JSON that is not parsed yet."""
    lines: int = 1
    """How many lines it covers."""
    ends_file: bool = False
    """Whether nothing after it can be read, so that nobody knows how much is lost."""
    size: int = 256
    """Bytes in memory, roughly, where it is no line of JSON."""

    def parse(self) -> "RawRow":
        """The same with its value, or with why it has none."""
        if self.raw is None:
            return self
        try:
            text = self.raw.decode("utf-8")
            if not text.strip():
                return RawRow(self.line, blank=True)
            return RawRow(self.line, parse_bounded_json(text, strict=True))
        except UnicodeDecodeError as error:
            return RawRow(self.line, fault=f"is not UTF-8 text (byte {error.start + 1} of the line)")
        except ValueError as error:
            return RawRow(self.line, fault=str(error))

    @property
    def excerpt(self) -> str:
        """What stands there, as far as it can be shown."""
        if self.raw is not None:
            return self.raw.decode("utf-8", errors="replace")
        try:
            return "" if self.value is None else json.dumps(self.value, ensure_ascii=False, default=str)
        except (TypeError, ValueError, RecursionError):
            return ""


def is_valid_utf8(text: str) -> bool:
    """Whether it can be written as UTF-8: no half surrogate pairs, no bytes that were let through."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shorten_reason(reason: object) -> str:
    """Of what a library says, as a sentence."""
    return f"{(str(reason).strip().splitlines() or ['it is damaged'])[0].rstrip('.')}."
