"""A run on 1, 2, ... N cards: memory of each card and time, with the base whole on each card or sharded."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from lora_chat.planning.card_links import CardLink
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.process_layout import ProcessLayout

_MAX_LISTED_CARDS = 8
"""Largest number of cards up to which every number is listed; beyond it, each is twice the one before."""
WORTHWHILE_SPEED_UP = 1.25
"""Smallest ratio of the times of a run with one card and with two at which the second one pays off."""
_MIN_EFFICIENCY = 0.5
"""Smallest speed-up per card at which a number of cards is recommended."""


@dataclass(frozen=True)
class CardRow:
    """A run on a number of cards."""

    estimate: RunEstimate
    speed_up: float | None
    """Time of the first run that fits, in multiples of this run's; None if one of them is unknown."""

    @property
    def cards(self) -> int:
        """Return the number of cards."""
        return self.estimate.layout.count

    @property
    def sharded(self) -> bool:
        """Return whether each card has only a part of the base."""
        return self.estimate.layout.sharded

    @property
    def fits(self) -> bool:
        """Return whether the run fits each card."""
        return self.estimate.verdict != "does not fit"

    @property
    def seconds(self) -> float | None:
        """Return the likely seconds of the run; None if they are unknown."""
        total = self.estimate.total_time
        return total.likely if total else None

    def as_dict(self) -> dict[str, object]:
        """Return the row for JSON, in bytes and seconds."""
        estimate, communication = self.estimate, self.estimate.communication
        total = estimate.total_time
        return {
            "cards": self.cards,
            "sharded": self.sharded,
            "verdict": estimate.verdict,
            "peak_bytes": estimate.peak,
            "worst_phase": estimate.worst_phase.name,
            "total_seconds": asdict(total) if total else None,
            "train_seconds": asdict(estimate.durations["train"]) if estimate.durations else None,
            "communication_seconds_per_step": communication.step + communication.gather if communication else 0.0,
            "speed_up": self.speed_up,
        }


@dataclass(frozen=True)
class CardTable:
    """Runs on 1, 2, ... N cards of a kind."""

    link: CardLink
    gradient_bytes: int
    """Bytes of the adapter's gradient, which each step sums over the cards."""
    rows: tuple[CardRow, ...]

    def find(self, cards: int, *, sharded: bool = False) -> CardRow | None:
        """Return the row of a number of cards."""
        return next((row for row in self.rows if (row.cards, row.sharded) == (cards, sharded)), None)

    @property
    def recommended(self) -> CardRow | None:
        """Return the largest number of cards that each make the run clearly faster; None if the run fits none.

        The base is sharded only if it must be. Without times, it is the smallest number that fits.
        """
        fitting = [row for row in self.rows if row.fits]
        whole = [row for row in fitting if not row.sharded]
        candidates = whole or fitting
        if not candidates:
            return None
        first = candidates[0]
        worthwhile = [
            row
            for row in candidates
            if first.seconds
            and row.seconds
            and first.seconds / row.seconds >= _MIN_EFFICIENCY * row.cards / first.cards
        ]
        largest = max(worthwhile, key=lambda row: row.cards, default=first)
        if largest.seconds and first.seconds and first.seconds / largest.seconds < WORTHWHILE_SPEED_UP:
            return first
        return largest

    def as_dict(self) -> dict[str, object]:
        """Return the table for JSON, in bytes and seconds."""
        best = self.recommended
        return {
            "link": asdict(self.link),
            "gradient_bytes": self.gradient_bytes,
            "rows": [row.as_dict() for row in self.rows],
            "recommended": {"cards": best.cards, "sharded": best.sharded} if best else None,
        }


def list_layouts(cards: int, link: CardLink) -> Iterator[ProcessLayout]:
    """Yield the layouts of 1 to `cards` cards: with the base whole on each card, and sharded."""
    counts = [*range(1, min(cards, _MAX_LISTED_CARDS) + 1)]
    while counts[-1] < cards:
        counts.append(min(cards, 2 * counts[-1]))
    for sharded in (False, True):
        for count in counts[1:] if sharded else counts:
            yield ProcessLayout(count, link, sharded)


def make_card_table(link: CardLink, gradient_bytes: int, estimates: Sequence[RunEstimate]) -> CardTable:
    """Return the table of estimates with different layouts."""
    first = next((each.total_time for each in estimates if each.verdict != "does not fit"), None)
    rows = []
    for estimate in estimates:
        total = estimate.total_time
        rows.append(CardRow(estimate, first.likely / total.likely if first and total else None))
    return CardTable(link, gradient_bytes, tuple(rows))
