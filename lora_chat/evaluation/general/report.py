"""The result of asking base and adapted model the items of a general set."""

from dataclasses import asdict, dataclass
from typing import Literal

from lora_chat.evaluation.intervals import MIN_ITEMS

GeneralWord = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class GeneralGroup:
    """The right replies to the items of one kind or language."""

    name: str
    items: int
    base_right: int
    adapted_right: int


@dataclass(frozen=True)
class GeneralAnswer:
    """The replies of both models to an item."""

    id: str
    language: str
    kind: str
    prompt: str
    base: str
    adapted: str
    base_right: bool
    adapted_right: bool


@dataclass(frozen=True)
class GeneralReport:
    """How the general abilities of the adapted model differ from those of its base."""

    items: int
    available: int
    """Number of items from which the asked ones were chosen."""
    set_name: str
    """`shipped`, or the name of the user's file."""
    set_digest: str
    """SHA-256 of the asked items."""
    base_right: int
    adapted_right: int
    difference: float
    """Rise of the share of right replies, in points of 100; negative if the adapted model has fewer."""
    difference_interval: tuple[float, float]
    """95 % interval of the difference, in points (Bonett and Price 2012)."""
    p_value: float
    """Exact two-sided p-value of McNemar's test."""
    word: GeneralWord
    equal_replies: float
    """Share of the base's greedy replies that the adapted model gives token for token, 0 to 1."""
    equal_leading_tokens: float
    """Mean share of a reply's tokens before the first difference, 0 to 1."""
    kinds: tuple[GeneralGroup, ...]
    languages: tuple[GeneralGroup, ...]
    answers: tuple[GeneralAnswer, ...]
    notes: tuple[str, ...] = ()

    @property
    def clause(self) -> str:
        """Return the result in one clause, such as `no loss shown in general (-3 to +2 points, 140 items)`."""
        asked = (
            f"{self.items:,} items" if self.items == self.available else f"{self.items:,} of {self.available:,} items"
        )
        low, high = self.difference_interval
        if self.word == "worse":
            points = f"{_format_points(-high)} to {_format_points(-low)}"
            return f"{_format_points(-self.difference)} points worse in general ({points}, {asked})"
        if self.word == "better":
            points = f"{_format_points(low)} to {_format_points(high)}"
            return f"{_format_points(self.difference)} points better in general ({points}, {asked})"
        if self.base_right < MIN_ITEMS:
            return f"no loss could be shown in general (the base answers {self.base_right} of {asked} right)"
        if high < 0:  # the exact test needs a little more than the interval
            points = f"{_format_points(low)} to {_format_points(high)}"
            return f"a loss in general is possible and not shown ({points} points, {asked})"
        return f"no loss shown in general ({_format_points(low, '+')} to {_format_points(high, '+')} points, {asked})"

    @property
    def summary(self) -> dict[str, object]:
        """Return the report for JSON, without replies."""
        values = asdict(self)
        del values["answers"]
        return {"text": self.clause, **values}

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON."""
        return {**self.summary, "answers": [asdict(answer) for answer in self.answers]}


def format_general(report: GeneralReport) -> list[str]:
    """Format the report in a few lines for the terminal; the verdict has its clause."""
    asked = f"{report.items} of {report.available}" if report.items < report.available else f"{report.items}"
    lines = [
        f"General: {report.base_right} -> {report.adapted_right} of {asked} items right; "
        f"{report.equal_replies:.0%} of the base's replies are unchanged"
    ]
    groups = [*report.kinds, *(report.languages if len(report.languages) > 1 else ())]
    lines.append(
        ", ".join(f"{group.name} {group.base_right} -> {group.adapted_right} of {group.items}" for group in groups)
    )
    return [lines[0], *(f"         {line}" for line in (lines[1], *report.notes))]


def _format_points(points: float, sign: str = "") -> str:
    """Format points of 100 as a whole number, with a sign if `sign` is +."""
    rounded = round(points)
    return "0" if rounded == 0 else format(rounded, f"{sign}d")
