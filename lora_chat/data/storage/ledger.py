"""Counts of the lines, dialogues, rows and tokens of a source."""

from dataclasses import asdict, dataclass, field

from lora_chat.data.parsing.line_counts import MAX_SHOWN_FAULTS, LineCounts

_SUMMED_FIELDS = (
    "dropped",
    "cut",
    "cuttable",
    "cuttable_replies",
    "cuttable_tokens",
    "dialogues",
    "rows",
    "replies",
    "stops",
    "thoughtless",
    "thoughts",
    "redacted",
    "tokens",
    "supervised_tokens",
    "dialogue_tokens",
    "loss_on_prompts",
)


@dataclass
class Ledger(LineCounts):
    """Counts of an encoded source, with lines = accepted + blank + refused + unwanted + dropped."""

    dropped: int = 0
    """Lines that were left out because they were too long."""
    cut: int = 0
    """Accepted lines that were too long and cut after the last reply that fits."""
    cuttable: int = 0
    """Dropped lines of which `data.over_long=cut` would keep a beginning."""
    cuttable_replies: int = 0
    """Number of trained replies in these beginnings."""
    cuttable_tokens: int = 0
    """Number of tokens in these beginnings."""
    dialogues: int = 0
    """Number of dialogues or blocks of plain text."""
    rows: int = 0
    """Number of rows; more than dialogues if the template rewrites earlier turns."""
    replies: int = 0
    """Number of trained replies."""
    stops: int = 0
    """Number of replies that end with a trained stop token."""
    thoughtless: int = 0
    """Number of replies without reasoning after a prompt that opens it, which teach the model to skip reasoning."""
    thoughts: int = 0
    """Number of replies with reasoning."""
    redacted: int = 0
    """Number of text spans that were replaced by marks."""
    tokens: int = 0
    supervised_tokens: int = 0
    dialogue_tokens: int = 0
    """Tokens of the longest row of each dialogue; fewer than `tokens` if a dialogue has several rows."""
    loss_on_prompts: int = 0
    """Number of dialogues with loss on prompts too."""
    longest: int = 0
    """Length of the longest row, in tokens."""
    roles: dict[str, list[int]] = field(default_factory=dict)
    """Tokens and supervised tokens of the content of each role; the template adds the rest."""
    kept_tokens: dict[str, int] = field(default_factory=dict)
    """Number of times that each token in `data.keep_tokens` occurs in message text, and stays a token."""
    plain_tokens: dict[str, int] = field(default_factory=dict)
    """Number of times that each other added token of the user occurs there, and is written as plain characters."""
    over_long: list[str] = field(default_factory=list)
    """First dialogues that are too long, with their lengths in tokens."""
    longest_refused: int = 0
    """Length of the longest dialogue that was dropped, in tokens."""
    systems: list[str | None] = field(default_factory=list)
    """Different system messages, at most two."""
    files: dict[str, str] = field(default_factory=dict)
    """Format of each file."""

    def add(self, other: LineCounts) -> None:
        """Add the counts of later lines, or of another ledger."""
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
        for own, others in ((self.kept_tokens, other.kept_tokens), (self.plain_tokens, other.plain_tokens)):
            for token, count in others.items():
                own[token] = own.get(token, 0) + count
        self.over_long = (self.over_long + other.over_long)[:MAX_SHOWN_FAULTS]
        self.systems = list(dict.fromkeys(self.systems + other.systems))[:2]
        self.files |= other.files

    def as_dict(self) -> dict[str, object]:
        """Return the counts as JSON data."""
        return asdict(self)


def sum_ledgers(ledgers: list[Ledger]) -> Ledger:
    """Return the sum of the ledgers of several sources."""
    result = Ledger()
    for ledger in ledgers:
        result.add(ledger)
    return result
