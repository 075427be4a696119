"""What an audit finds, and where."""

from dataclasses import dataclass
from typing import Literal

from lora_chat.planning.audit_section import KINDS as KINDS
from lora_chat.planning.audit_section import Kind as Kind

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Match:
    """A stretch of a text, as character offsets, and what it is."""

    kind: Kind
    detail: str
    """Such as "AWS access key" or "IBAN"."""
    start: int
    end: int
    mark: str = ""
    """What takes its place when it is redacted, such as `[IBAN]`."""


@dataclass(frozen=True)
class Finding:
    """One thing that may be wrong with the dialogues."""

    kind: Kind
    path: str
    """The file."""
    line: int
    """Line of the file, counted from 1; 0 for what concerns all of it."""
    message: int = 0
    """Message of the dialogue, counted from 1; 0 for the whole dialogue."""
    detail: str = ""
    excerpt: str = ""
    """Masked: safe to print and to keep."""
    twin: str = ""
    """`path:line` of the dialogue that it repeats."""

    @property
    def place(self) -> str:
        """`path:line`, as compilers write it; the path alone for a whole file."""
        return f"{self.path}:{self.line}" if self.line else self.path
