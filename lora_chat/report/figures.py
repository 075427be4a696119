"""The figures, the verdict and the items of a comparison, read from its JSON.

Comparisons of earlier versions have only the values of each metric, samples and answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lora_chat.report.show import NOTHING, show_number
from lora_chat.report.values import as_count, as_interval, as_list, as_number, as_object, as_text

_MAX_METRICS = 100
_MAX_SCORES = 30
"""Largest number of metrics of an item."""
_MAX_NAME = 200
_EQUAL_BASES = 0.002
"""Largest relative difference between values of the base that rounding on other devices explains."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class MetricStyle:
    """How a metric is shown."""

    name: str
    label: str
    format: Callable[[float], str]
    lower_is_better: bool
    is_right_or_wrong: bool

    def show(self, value: float | None) -> str:
        """Format a value, or a dash for None."""
        return NOTHING if value is None else self.format(value)

    def show_difference(self, value: float | None) -> str:
        """Format a difference with its sign, or a dash for None."""
        if value is None:
            return NOTHING
        sign = "+" if value > 0 else "−" if value < 0 else "±"
        return sign + self.format(abs(value))

    def show_interval(self, interval: Interval | None, *, signed: bool = False) -> str:
        """Format an interval, or nothing for None."""
        show = self.show_difference if signed else self.show
        return "" if interval is None else f"{show(interval[0])} to {show(interval[1])}"


@dataclass(frozen=True)
class Figure:
    """The values of one metric; an earlier version gave them no intervals."""

    style: MetricStyle
    base: float
    adapted: float
    items: int | None
    base_interval: Interval | None
    adapted_interval: Interval | None
    difference: float
    difference_interval: Interval | None
    p_value: float | None
    word: str | None
    needed_items: int | None


@dataclass(frozen=True)
class Item:
    """A prompt with the replies of both models and their scores."""

    prompt: str
    reference: str | None
    base: str
    adapted: str
    scores: Mapping[str, tuple[float, float]]
    """Scores of base and adapted model, by the names of metrics."""
    is_question: bool = False


def read_figures(comparison: Mapping[str, object]) -> list[Figure]:
    """Return the figures of every metric that a comparison has."""
    from lora_chat.evaluation.metrics import METRICS

    stated = as_object(comparison.get("figures"))
    names = [*stated, *(metric.name for metric in METRICS if metric.name not in stated)]
    figures = [_read_figure(name, as_object(stated.get(name) or comparison.get(name)), comparison) for name in names]
    return [figure for figure in figures[:_MAX_METRICS] if figure is not None]


def are_comparable(figures: Sequence[Figure]) -> bool:
    """Return whether the base has nearly the same value in all runs, which the same data gives."""
    values = [figure.base for figure in figures]
    return max(values) - min(values) <= _EQUAL_BASES * max(map(abs, values))


def find_style(name: str, questions: int = 0) -> MetricStyle:
    """Return how a metric is shown; a metric of a user's file is shown as a plain number."""
    from lora_chat.evaluation.metrics import METRICS

    metric = next((metric for metric in METRICS if metric.name == name), None)
    if metric is None:
        return MetricStyle(name[:_MAX_NAME], name[:_MAX_NAME].replace("_", " "), show_number, False, False)
    is_right_or_wrong = bool(getattr(metric, "is_right_or_wrong", metric.is_share_of_questions))
    return MetricStyle(name, metric.format_label(questions), metric.format, metric.lower_is_better, is_right_or_wrong)


def read_items(comparison: Mapping[str, object], limit: int) -> tuple[list[Item], int]:
    """Return the first items of a comparison, and the number of all; samples if it has no items with scores."""
    replies = as_list(comparison.get("items")) or as_list(comparison.get("samples"))
    answers = as_list(comparison.get("answers"))
    rows = [*replies[:limit], *answers[: max(0, limit - len(replies))]]
    items = [_read_item(as_object(row)) for row in rows if isinstance(row, dict)]
    return items, len(replies) + len(answers)


def _read_figure(name: str, pair: Mapping[str, object], comparison: Mapping[str, object]) -> Figure | None:
    """Return the figures of one metric, or None if its values are missing."""
    base, adapted = as_number(pair.get("base")), as_number(pair.get("adapted"))
    if base is None or adapted is None:
        return None
    questions = as_count(pair.get("questions")) or as_count(comparison.get("questions")) or 0
    style = find_style(name, questions)
    items = as_count(pair.get("items"))
    if items is None:  # of an earlier version
        items = questions if style.is_right_or_wrong else as_count(comparison.get("validation_dialogues"))
    difference = as_number(pair.get("difference"))
    return Figure(
        style=style,
        base=base,
        adapted=adapted,
        items=items,
        base_interval=as_interval(pair.get("base_interval")),
        adapted_interval=as_interval(pair.get("adapted_interval")),
        difference=adapted - base if difference is None else difference,
        difference_interval=as_interval(pair.get("difference_interval")),
        p_value=as_number(pair.get("p_value")),
        word=as_text(pair.get("verdict")),
        needed_items=as_count(pair.get("needed_items")),
    )


def _read_item(row: Mapping[str, object]) -> Item:
    """Return an item of this or an earlier version, or an answer to a question."""
    scores: dict[str, tuple[float, float]] = {}
    for name, pair in list(as_object(row.get("scores")).items())[:_MAX_SCORES]:
        values = [as_number(int(part) if isinstance(part, bool) else part) for part in as_list(pair)]
        if len(values) == 2 and values[0] is not None and values[1] is not None:
            scores[name[:_MAX_NAME]] = (values[0], values[1])
    is_question = "question" in row
    if is_question and isinstance(row.get("base_right"), bool) and isinstance(row.get("adapted_right"), bool):
        scores["facts"] = (float(row["base_right"] is True), float(row["adapted_right"] is True))
    return Item(
        prompt=as_text(row.get("question" if is_question else "prompt")) or "",
        reference=as_text(row.get("reference")),
        base=as_text(row.get("base")) or "",
        adapted=as_text(row.get("adapted")) or "",
        scores=scores,
        is_question=is_question,
    )
