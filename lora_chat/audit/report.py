"""What an audit says when all dialogues have been seen."""

from dataclasses import dataclass
from typing import Literal

from lora_chat.config.audit import FindingKind

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class TextMatch:
    """A stretch of a text, as character offsets, and what it is."""

    kind: FindingKind
    detail: str
    """Such as "AWS access key" or "IBAN"."""
    start: int
    end: int
    mark: str = ""
    """What takes its place when it is redacted, such as `[IBAN]`."""


@dataclass(frozen=True)
class Finding:
    """One thing that may be wrong with the dialogues."""

    kind: FindingKind
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
    def location(self) -> str:
        """`path:line`, as compilers write it; the path alone for a whole file."""
        return f"{self.path}:{self.line}" if self.line else self.path


@dataclass(frozen=True)
class AuditReport:
    """The result for all dialogues, in training and in validation."""

    dialogues: int
    counts: dict[FindingKind, int]
    """How many findings of each kind there are; kinds without one are left out."""
    findings: tuple[Finding, ...]
    """The first of each kind."""
    shares: dict[str, float]
    """Share of the trained text by file."""
    refused: tuple[FindingKind, ...]
    """The kinds found that the policy refuses."""
    redacted: tuple[FindingKind, ...]
    """The kinds found that the policy redacts."""

    @property
    def is_refused(self) -> bool:
        """Whether these dialogues should not be trained on."""
        return bool(self.refused)

    def findings_of_kind(self, kind: FindingKind) -> tuple[Finding, ...]:
        """The findings shown for one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)
