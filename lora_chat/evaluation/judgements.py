"""Statistics of blind human votes on pairs of replies: win rate, sign test, position bias and agreement.

The unit is a pair of replies to one held-out prompt. Each judge has one vote on a pair, the latest. With several judges
the majority of a pair counts, because their votes on the same pair are not independent.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Literal, TypeAlias

from lora_chat.evaluation.intervals import (
    MIN_ITEMS,
    SIGNIFICANCE,
    Interval,
    mcnemar_p_value,
    needed_items,
    paired_share_interval,
    wilson_interval,
)
from lora_chat.runs.judgement_record import (
    EqualReplies,
    JudgedComparison,
    JudgementRecord,
    Retraction,
    Vote,
    Winner,
)

JudgedWord: TypeAlias = Literal["better", "worse", "no difference shown", "not measured"]
_Ballot: TypeAlias = tuple[str | None, str]
"""A judge and the digest of a pair."""


@dataclass(frozen=True)
class PairCounts:
    """The number of pairs by their outcome."""

    wins: int
    """Pairs in which the reply of A was preferred."""
    losses: int
    """Pairs in which the reply of B was preferred."""
    ties: int
    both_bad: int

    @property
    def decided(self) -> int:
        """Return the number of pairs with a preferred reply."""
        return self.wins + self.losses

    @property
    def pairs(self) -> int:
        """Return the number of judged pairs."""
        return self.decided + self.ties + self.both_bad


@dataclass(frozen=True)
class PreferenceFigures:
    """The figures that follow from the counts of pairs."""

    word: JudgedWord
    """Whether A is preferred to B, in the words of the verdict of a comparison."""
    win_rate: float | None
    """Share of A among the decided pairs; None without any."""
    win_rate_interval: Interval | None
    half_rate: float | None
    """Share of A if each pair without a preference counts half; None without pairs."""
    half_rate_interval: Interval | None
    p_value: float | None
    """Probability of counts as unequal as these if both are equally good (exact sign test); two-sided."""
    needed_votes: int | None
    """Number of pairs that would show a difference of this size; None if it is shown, or if the counts are equal."""


def measure_preference(counts: PairCounts) -> PreferenceFigures:
    """Return the win rate of A with its interval, the sign test and the verdict.

    The interval of the win rate is Wilson's; the one with halves follows from the difference of paired shares.
    """
    wins, losses, pairs = counts.wins, counts.losses, counts.pairs
    if not pairs:
        return PreferenceFigures("not measured", None, None, None, None, None, None)
    rate = wins / counts.decided if counts.decided else None
    p_value = mcnemar_p_value(wins, losses)
    difference = (wins - losses) / pairs
    low, high = paired_share_interval(wins, losses, pairs)
    is_shown = counts.decided >= MIN_ITEMS and p_value < SIGNIFICANCE
    spread = math.sqrt(max(0.0, counts.decided - (wins - losses) ** 2 / pairs)) / pairs
    return PreferenceFigures(
        word=("better" if wins > losses else "worse") if is_shown else "no difference shown",
        win_rate=rate,
        win_rate_interval=wilson_interval(rate, counts.decided) if rate is not None else None,
        half_rate=(1 + difference) / 2,
        half_rate_interval=((1 + low) / 2, (1 + high) / 2),
        p_value=p_value,
        needed_votes=None if is_shown else needed_items(pairs, difference, spread),
    )


@dataclass(frozen=True)
class PositionBias:
    """How often the left reply was preferred."""

    left: int
    right: int
    p_value: float | None
    """Probability of counts as unequal as these without a bias; None without votes."""

    @property
    def share(self) -> float | None:
        """Return the share of left among the votes for a side; None without any."""
        return self.left / (self.left + self.right) if self.left + self.right else None


@dataclass(frozen=True)
class Agreement:
    """How often two judges gave the same answer to the same pair."""

    equal: int
    compared: int
    """Number of pairs of votes of two judges on the same replies."""


@dataclass(frozen=True)
class Remark:
    """A note of a judge on a pair."""

    item: int
    """Index of the held-out prompt."""
    winner: Winner
    text: str
    judge: str | None


@dataclass(frozen=True)
class JudgementResult:
    """The result of all votes on one comparison."""

    comparison: JudgedComparison
    counts: PairCounts
    figures: PreferenceFigures
    votes: int
    """Number of votes that count: the latest of each judge on each pair."""
    judges: int
    equal_replies: int
    """Number of pairs with equal replies, which were not shown and are not among the pairs."""
    position: PositionBias
    agreement: Agreement | None
    """Agreement of the judges; None unless several judged the same pair."""
    last_time: str
    """Time of the latest record."""
    remarks: tuple[Remark, ...] = ()
    """Notes of the votes that count; JSON leaves them out, because they may quote private prompts."""

    def reversed(self, records: Iterable[JudgementRecord]) -> "JudgementResult":
        """Return the result with its models exchanged, from records among which are those of the comparison."""
        members = [record for record in records if record.comparison.key == self.comparison.key]
        return summarize_comparison(self.comparison.reversed, members)

    def as_dict(self) -> dict[str, object]:
        """Return the result for JSON."""
        return {
            "a": self.comparison.a.model_dump(),
            "b": self.comparison.b.model_dump(),
            "settings": self.comparison.settings.model_dump(),
            "votes": self.votes,
            "judges": self.judges,
            "pairs": self.counts.pairs,
            **asdict(self.counts),
            "equal_replies": self.equal_replies,
            **asdict(self.figures),
            "left": {"share": self.position.share, **asdict(self.position)},
            "agreement": asdict(self.agreement) if self.agreement else None,
            "last_vote": self.last_time,
        }


def summarize_judgements(records: Iterable[JudgementRecord]) -> list[JudgementResult]:
    """Return the result of each comparison in the records, the one with the latest record last.

    A comparison and its reverse are one. Its models keep the order and the names of its latest record.
    """
    groups: dict[Hashable, list[JudgementRecord]] = {}
    for record in records:
        key = record.comparison.key
        groups[key] = groups.pop(key, [])  # moves it to the end
        groups[key].append(record)
    return [summarize_comparison(members[-1].comparison, members) for members in groups.values()]


def summarize_comparison(comparison: JudgedComparison, records: Sequence[JudgementRecord]) -> JudgementResult:
    """Return the result of the records of a comparison, or of its reverse; others must not be among them."""
    ballots: dict[_Ballot, Vote] = {}
    equal_items: set[str] = set()
    for record in records:
        if isinstance(record, EqualReplies):
            equal_items.add(record.pair)
            continue
        ballots.pop((record.judge, record.pair), None)
        if not isinstance(record, Retraction):
            ballots[record.judge, record.pair] = record
    winners: dict[str, list[Winner]] = defaultdict(list)
    for (_, pair), vote in ballots.items():
        winners[pair].append(_orient(vote, comparison))
    outcomes = Counter(_find_outcome(votes) for votes in winners.values())
    counts = PairCounts(outcomes["a"], outcomes["b"], outcomes["tie"], outcomes["both bad"])
    return JudgementResult(
        comparison=comparison,
        counts=counts,
        figures=measure_preference(counts),
        votes=len(ballots),
        judges=len({judge for judge, _ in ballots}),
        equal_replies=len(equal_items),
        position=measure_position(ballots.values()),
        agreement=measure_agreement(winners),
        last_time=max((record.time for record in records), default=""),
        remarks=tuple(
            Remark(vote.item, _orient(vote, comparison), vote.note, vote.judge)
            for vote in ballots.values()
            if vote.note
        ),
    )


def _orient(vote: Vote, comparison: JudgedComparison) -> Winner:
    """Return the winner of a vote in the order of a comparison, whose reverse the vote may belong to."""
    if vote.winner in ("a", "b") and vote.comparison.a.adapter != comparison.a.adapter:
        return "b" if vote.winner == "a" else "a"
    return vote.winner


def _find_outcome(votes: Sequence[Winner]) -> Winner:
    """Return the outcome of a pair by the majority of its votes; equal numbers are a tie."""
    counts = Counter(votes)
    if counts["a"] != counts["b"]:
        return "a" if counts["a"] > counts["b"] else "b"
    return "both bad" if counts["both bad"] == len(votes) else "tie"


def measure_position(votes: Iterable[Vote]) -> PositionBias:
    """Return how often the left reply was preferred, with the exact test of a bias."""
    choices = Counter(vote.choice for vote in votes)
    left, right = choices["left"], choices["right"]
    return PositionBias(left, right, mcnemar_p_value(left, right) if left + right else None)


def measure_agreement(winners: Mapping[str, Sequence[Winner]]) -> Agreement | None:
    """Return how often two judges agree, from the votes on each pair; None without pairs of several votes."""
    matches = [first == second for votes in winners.values() for first, second in combinations(votes, 2)]
    return Agreement(sum(matches), len(matches)) if matches else None
