"""The findings of an audit."""

from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from lora_chat.config.audit import FindingKind

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
"""The sets of a run, in the order in which the audit reads them."""


@dataclass(frozen=True)
class TextMatch:
    """A part of a text, as character offsets, and its kind."""

    kind: FindingKind
    detail: str
    """Name of the format, such as "AWS access key" or "IBAN"."""
    start: int
    end: int
    mark: str = ""
    """Replacement in a redacted text, such as `[IBAN]`."""


@dataclass(frozen=True)
class Finding:
    """A possible problem in the dialogues."""

    kind: FindingKind
    path: str
    """Path of the file."""
    line: int
    """Line of the file, counted from 1. 0 means the whole file."""
    message: int = 0
    """Message of the dialogue, counted from 1. 0 means the whole dialogue."""
    detail: str = ""
    excerpt: str = ""
    """Excerpt of the text, masked, which is safe to print and to store."""
    twin: str = ""
    """Location, as `path:line`, of the dialogue that this one repeats."""

    @property
    def location(self) -> str:
        """Return `path:line`, as compilers print it, or only the path for a whole file."""
        return f"{self.path}:{self.line}" if self.line else self.path


@dataclass(frozen=True)
class AuditReport:
    """The findings in the training, validation and test dialogues."""

    dialogues: int
    counts: dict[FindingKind, int]
    """Number of findings of each kind that occurs."""
    findings: tuple[Finding, ...]
    """First findings of each kind."""
    shares: dict[str, float]
    """Share of each file in the trained text."""
    refused: tuple[FindingKind, ...]
    """Kinds of findings that the policy refuses."""
    redacted: tuple[FindingKind, ...]
    """Kinds of findings that the policy redacts."""
    dropped: dict[FindingKind, int] = field(default_factory=dict)
    """Number of dialogues that the policy leaves out, each under one kind of finding."""
    left_out: tuple[int, ...] = ()
    """Numbers of these dialogues, counted from 0 in the order of the audit, sorted."""

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON data, without the numbers of single dialogues."""
        return {key: value for key, value in asdict(self).items() if key != "left_out"}

    @property
    def is_refused(self) -> bool:
        """Return whether the policy refuses to train on these dialogues."""
        return bool(self.refused)

    def findings_of_kind(self, kind: FindingKind) -> tuple[Finding, ...]:
        """Return the findings of one kind that are shown."""
        return tuple(finding for finding in self.findings if finding.kind == kind)
