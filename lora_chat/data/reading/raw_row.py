"""A row of a file before it is parsed as a dialogue."""

import json
from dataclasses import dataclass

from lora_chat.system.bounded_files import parse_bounded_json


@dataclass(frozen=True)
class RawRow:
    """A row of a file, or its blank lines."""

    line: int
    """First line, from 1; in Parquet and Arrow the number of the row, in a list on one line that of the element."""
    value: object = None
    fault: str | None = None
    """The reason why the row cannot be read."""
    blank: bool = False
    raw: bytes | None = None
    """A line of JSON that is not yet parsed."""
    lines: int = 1
    """Number of lines."""
    ends_file: bool = False
    """Whether nothing after it can be read, so that an unknown amount is lost."""
    size: int = 256
    """Approximate bytes in memory, if it is not a line of JSON."""
    is_element: bool = False
    """Whether `line` is the number of an element of a list."""
    notes: tuple[str, ...] = ()
    """Names in `ROW_NOTES` that reading the file adds to the row."""
    is_explained: bool = False
    """Whether the fault explains the whole file, with the fix."""
    is_cut_off: bool = False
    """Whether the file ends in this line, without a line feed."""
    end: int | None = None
    """Offset of the byte after the row in a file of JSON lines."""

    def parse(self) -> "RawRow":
        """Return the row with its value, or with the fault in its JSON."""
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
            is_cut_off = self.is_cut_off and self.line > 1 and self.raw.lstrip().startswith(b"{")
            is_cut_off = is_cut_off and not self.raw.rstrip().endswith(b"}")
            reason = f"is cut off, because the file ends in the middle of this line: {error}" if is_cut_off else error
            return RawRow(self.line, fault=str(reason))

    @property
    def excerpt(self) -> str:
        """Return the content as text, as far as it can be shown."""
        if self.raw is not None:
            return self.raw.decode("utf-8", errors="replace")
        try:
            return "" if self.value is None else json.dumps(self.value, ensure_ascii=False, default=str)
        except (TypeError, ValueError, RecursionError):
            return ""


def is_valid_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8, without half surrogate pairs and undecoded bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shorten_reason(reason: object) -> str:
    """Return the first line of a library's message as a sentence."""
    return f"{(str(reason).strip().splitlines() or ['it is damaged'])[0].rstrip('.')}."
