"""Strict model of human votes in a receipt: counts, and the figures that follow from them.

The counts are claims of the sender. The figures are computed from them again, and a receipt with others is refused.
Notes and prompts are never part of a receipt.
"""

import math
import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.evaluation.intervals import Interval
from lora_chat.evaluation.judgement_text import format_judgement
from lora_chat.evaluation.judgements import JudgementResult, PairCounts, PreferenceFigures, measure_preference
from lora_chat.runs.judgement_record import JudgedModel
from lora_chat.sharing.figures import NAME_PATTERN, Count, Proportion, Sha256Digest

_TOLERANCE = 1e-9
"""Largest difference of a figure that rounding on another machine explains."""
_MAX_VOTES = 10**5
"""Largest number of votes, which bounds the time of the sign test."""
_Votes = Annotated[int, Field(ge=0, le=_MAX_VOTES)]
_ProportionInterval = tuple[Proportion, Proportion]


class JudgedModelReceipt(StrictModel):
    """One of the two models whose replies were compared."""

    label: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    adapter: Sha256Digest | None
    """SHA-256 of the adapter's weights; None for the bare base."""


class JudgementReceipt(StrictModel):
    """Votes of people who compared the replies of two models without knowing which is which."""

    a: JudgedModelReceipt
    """The adapter of the parcel."""
    b: JudgedModelReceipt
    max_new_tokens: Annotated[int, Field(ge=1, le=2**31)]
    temperature: Annotated[float, Field(ge=0, le=100)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    votes: Annotated[int, Field(ge=1, le=_MAX_VOTES)]
    judges: Annotated[int, Field(ge=1, le=_MAX_VOTES)]
    wins: _Votes
    losses: _Votes
    ties: _Votes
    both_bad: _Votes
    equal_replies: Count
    """Number of pairs with equal replies, which were not shown."""
    win_rate: Proportion | None
    """Share of A among the pairs with a preferred reply."""
    win_rate_interval: _ProportionInterval | None
    half_rate: Proportion
    """Share of A if each pair without a preference counts half."""
    half_rate_interval: _ProportionInterval
    p_value: Proportion
    """P-value of the exact two-sided sign test."""
    word: Literal["better", "worse", "no difference shown"]
    needed_votes: Count | None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if counts, figures and verdict contradict one another."""
        pairs = self.counts.pairs
        if self.a.adapter is None or self.a.adapter == self.b.adapter:
            raise ValueError("it does not compare an adapter with another model")
        if not pairs or not pairs <= self.votes <= pairs * self.judges or self.judges > self.votes:
            raise ValueError("pairs, votes and judges do not fit together")
        figures = self.figures
        if self.word != figures.word:
            raise ValueError(f"the verdict is {self.word!a}, but {figures.word!a} follows from the votes")
        stated: list[tuple[str, object, object]] = [
            (name, getattr(self, name), getattr(figures, name))
            for name in ("win_rate", "win_rate_interval", "half_rate", "half_rate_interval", "p_value", "needed_votes")
        ]
        for name, value, expected in stated:
            if not _is_equal(value, expected):
                raise ValueError(f"{name} does not follow from the votes")
        return self

    @property
    def counts(self) -> PairCounts:
        """Return the counts of the pairs."""
        return PairCounts(self.wins, self.losses, self.ties, self.both_bad)

    @property
    def figures(self) -> PreferenceFigures:
        """Return the figures that follow from the counts."""
        return measure_preference(self.counts)

    @property
    def text(self) -> str:
        """Return the result in one sentence, with the words of the run's report."""
        return format_judgement(
            self.a.label, self.b.label, self.counts, self.figures, self.votes, self.judges, self.equal_replies
        )


def _is_equal(value: object, expected: object) -> bool:
    """Return whether numbers or intervals are equal but for rounding."""
    if isinstance(value, tuple) and isinstance(expected, tuple):
        return len(value) == len(expected) and all(map(_is_equal, value, expected))
    if isinstance(value, int | float) and isinstance(expected, int | float):
        return math.isclose(value, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return value is None and expected is None


def make_judgement_receipt(result: JudgementResult, name: str) -> JudgementReceipt | None:
    """Return the votes on an adapter, which is A of the result and gets the name of the parcel; None without votes."""
    counts, figures, settings = result.counts, result.figures, result.comparison.settings
    if figures.word == "not measured" or figures.half_rate is None or figures.half_rate_interval is None:
        return None
    return JudgementReceipt(
        a=JudgedModelReceipt(label=_make_label(result.comparison.a, name), adapter=result.comparison.a.adapter),
        b=JudgedModelReceipt(
            label=_make_label(result.comparison.b, result.comparison.b.name), adapter=result.comparison.b.adapter
        ),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.generation.temperature,
        top_p=settings.generation.top_p,
        votes=result.votes,
        judges=result.judges,
        wins=counts.wins,
        losses=counts.losses,
        ties=counts.ties,
        both_bad=counts.both_bad,
        equal_replies=result.equal_replies,
        win_rate=figures.win_rate,
        win_rate_interval=_bound(figures.win_rate_interval),
        half_rate=figures.half_rate,
        half_rate_interval=_bound(figures.half_rate_interval) or (0.0, 1.0),
        p_value=figures.p_value if figures.p_value is not None else 1.0,
        word=figures.word,
        needed_votes=figures.needed_votes,
    )


def _bound(interval: Interval | None) -> Interval | None:
    """Return an interval of a share without rounding errors below 0 or above 1."""
    return (max(0.0, interval[0]), min(1.0, interval[1])) if interval else None


def _make_label(model: JudgedModel, name: str) -> str:
    """Return a name of letters, digits and few signs, without the folders of the machine."""
    if model.adapter is None:
        return "base"
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-_")[:96] or "adapter"
