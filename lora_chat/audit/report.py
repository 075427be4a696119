"""What an audit says when all dialogues have been seen."""

from dataclasses import dataclass

from lora_chat.audit.findings import Finding, Kind


@dataclass(frozen=True)
class AuditReport:
    """The result for all dialogues, in training and in validation."""

    dialogues: int
    counts: dict[Kind, int]
    """How many findings of each kind there are; kinds without one are left out."""
    findings: tuple[Finding, ...]
    """The first of each kind."""
    shares: dict[str, float]
    """Share of the trained text by file."""
    refused: tuple[Kind, ...]
    """The kinds found that the policy refuses."""
    redacted: tuple[Kind, ...]
    """The kinds found that the policy redacts."""

    @property
    def refuses(self) -> bool:
        """Whether these dialogues should not be trained on."""
        return bool(self.refused)

    def of_kind(self, kind: Kind) -> tuple[Finding, ...]:
        """The findings shown for one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)
