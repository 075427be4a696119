"""The account of a source: what became of its lines, and how many tokens that made."""

from dataclasses import asdict, dataclass, field
from typing import Any

from lora_chat.data.parsing.rows import MAX_SHOWN_FAULTS, LineCounts

_SUMMED_FIELDS = (
    "dropped",
    "cut",
    "dialogues",
    "rows",
    "replies",
    "stops",
    "thoughtless",
    "redacted",
    "tokens",
    "supervised_tokens",
)


@dataclass
class Ledger(LineCounts):
    """lines = accepted + blank + refused + dropped, always."""

    dropped: int = 0
    """Too long, and left out."""
    cut: int = 0
    """Too long, and cut after the last reply that fits; these are among the accepted."""
    dialogues: int = 0
    """Dialogues, or blocks of plain text."""
    rows: int = 0
    """More than dialogues where the template rewrites earlier turns."""
    replies: int = 0
    """Trained replies."""
    stops: int = 0
    """Those that end with a trained stop token."""
    thoughtless: int = 0
    """Replies without thoughts behind a prompt that opens them: the model learns to answer at once."""
    redacted: int = 0
    """Stretches of text that were replaced by marks."""
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    """Tokens of the longest row."""
    roles: dict[str, list[int]] = field(default_factory=dict)
    """Tokens of what each role says, and how many carry loss; the rest is the template's."""
    over_long: list[str] = field(default_factory=list)
    """The first dialogues that are too long, with their tokens."""
    longest_refused: int = 0
    """Tokens of the longest one that is too long."""
    systems: list[str | None] = field(default_factory=list)
    """The system messages, until there are two."""
    files: dict[str, str] = field(default_factory=dict)
    """Every file with the format it is in."""

    def add(self, other: LineCounts) -> None:
        super().add(other)
        if not isinstance(other, Ledger):
            return
        for name in _SUMMED_FIELDS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("longest", "longest_refused"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for role, (tokens, supervised) in other.roles.items():
            before = self.roles.get(role, [0, 0])
            self.roles[role] = [before[0] + tokens, before[1] + supervised]
        self.over_long = (self.over_long + other.over_long)[:MAX_SHOWN_FAULTS]
        self.systems = list(dict.fromkeys(self.systems + other.systems))[:2]
        self.files |= other.files

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def sum_ledgers(ledgers: list[Ledger]) -> Ledger:
    """The account of several sources together."""
    result = Ledger()
    for ledger in ledgers:
        result.add(ledger)
    return result
