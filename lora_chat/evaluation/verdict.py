"""The verdict of a comparison, in the same words wherever it is shown."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from lora_chat.evaluation.metrics import Metric, MetricFigures

EvaluatedSet = Literal["validation", "test", "given"]
VerdictWord = Literal["better", "worse", "no difference shown", "withheld", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """Whether the adapted model is better than its base, by one metric."""

    word: VerdictWord
    metric: str | None
    """Name of the metric that decides; None if nothing was measured."""
    text: str
    """The verdict in one sentence."""
    needed_items: int | None = None
    """Number of items that would show a difference of this size."""

    def as_dict(self) -> dict[str, object]:
        """Return the verdict for JSON."""
        return asdict(self)


def judge(
    metric: Metric | None,
    figures: Mapping[str, MetricFigures],
    *,
    withheld: str | None = None,
    general: str | None = None,
    notes: tuple[str, ...] = (),
) -> Verdict:
    """Return the verdict by the decisive metric.

    `withheld` is the reason why nothing can be said. `general` says in one clause how other abilities changed; `notes`
    are further sentences.
    """
    pair = figures.get(metric.name) if metric is not None else None
    if metric is None or pair is None:
        return Verdict("not measured", None, " ".join(["Not measured: there is nothing to compare on.", *notes]))
    if withheld is not None:
        other_abilities = [f"{general[0].upper()}{general[1:]}."] if general else []
        return Verdict("withheld", metric.name, " ".join([f"Withheld: {withheld}", *other_abilities, *notes]))
    word: VerdictWord = pair.get("verdict", "no difference shown")
    needed = pair.get("needed_items")
    clauses = [f"{_format_word(word, pair, needed)}: {format_difference(metric, pair)}"]
    if general:
        clauses.append(general)
    sentence = "; ".join(clauses) + "."
    return Verdict(word, metric.name, " ".join([sentence, *notes]), needed)


def _format_word(word: str, pair: MetricFigures, needed: int | None) -> str:
    """Format the word with the number of items that would be needed."""
    if word != "no difference shown":
        return f"{word.capitalize()} at the task"
    if needed is not None:
        return f"No difference shown at the task (needs about {needed:,} items)"
    return "No difference shown at the task"


def format_difference(metric: Metric, pair: MetricFigures) -> str:
    """Format both values of a metric, and their difference with its interval, and the number of items."""
    questions = pair.get("questions", 0)
    text = f"{metric.format_label(questions)} {metric.format(pair['base'])} -> {metric.format(pair['adapted'])}"
    change = format_change(metric, pair)
    return f"{text} ({change}, {pair.get('items', 0):,} {metric.items})" if change else text


def format_change(metric: Metric, pair: MetricFigures) -> str:
    """Format the difference of a metric with its 95 % interval; nothing if it was not measured."""
    interval = pair.get("difference_interval")
    if interval is None:
        return ""
    difference, low, high = (_format_signed(metric, v) for v in (pair["adapted"] - pair["base"], *interval))
    return f"{difference}{' points' if metric.is_share else ''}, 95 % interval {low} to {high}"


def _format_signed(metric: Metric, value: float) -> str:
    """Format a difference with its sign; that of a share in points of 100."""
    text = f"{100 * abs(value):.1f}" if metric.is_share else metric.format(abs(value))
    is_zero = text == ("0.0" if metric.is_share else metric.format(0.0))
    return text if is_zero else f"{'+' if value > 0 else '-'}{text}"
