"""The metrics that compare an adapted model with its base, in one table.

Comparison text, JSON, receipt and model card iterate over `METRICS`. Receipts contain only the metrics of their version
(`ComparisonReceipt` in sharing/figures.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import NotRequired, TypedDict

from lora_chat.evaluation.loss import perplexity
from lora_chat.evaluation.questions import Question


class MetricFigures(TypedDict):
    """The values of one metric, as in JSON."""

    base: float
    adapted: float
    questions: NotRequired[int]
    """Number of questions, for a metric that is a share of them."""


@dataclass(frozen=True)
class Measurement:
    """The measurements of one model, base or adapted."""

    loss: float | None
    """Mean loss of a supervised token of the validation set, in nats; None without a validation set."""
    questions: Sequence[Question]
    answers: Sequence[str]
    """The model's reply to each question."""


def _share_correct(measurement: Measurement) -> float | None:
    """Return the share of questions with a correct answer, 0 to 1; None without questions."""
    if not measurement.questions:
        return None
    pairs = zip(measurement.questions, measurement.answers, strict=True)
    return sum(question.is_answered_by(answer) for question, answer in pairs) / len(measurement.questions)


def _format_perplexity(value: float) -> str:
    """Format a perplexity, in scientific notation if it is large."""
    return f"{value:.2f}" if value < 1e6 else f"{value:.2e}"


@dataclass(frozen=True)
class Metric:
    """A metric: its name, how it is computed, and how it is shown."""

    name: str
    """Key in JSON."""
    label: str
    """Label of a table row; `{questions}` is replaced by the number of questions."""
    compute: Callable[[Measurement], float | None]
    """Function that returns the value, or None without data."""
    format: Callable[[float], str]
    lower_is_better: bool
    in_summary: bool = True
    """Whether one-line summaries and model cards show it."""
    is_share_of_questions: bool = False
    """Whether the value is a share of the questions, which has a confidence interval."""

    def format_label(self, questions: int) -> str:
        """Return the label of a table row."""
        return self.label.format(questions=questions)

    def format_with_interval(self, value: float, questions: int) -> str:
        """Format a value; a share of the questions with its 95 % interval."""
        if not self.is_share_of_questions:
            return self.format(value)
        low, high = wilson_interval(value, questions)
        return f"{self.format(value)} ({self.format(low)} to {self.format(high)})"

    def is_improved(self, base: float, adapted: float) -> bool:
        """Return whether the adapted model is better than the base."""
        return adapted < base if self.lower_is_better else adapted > base


METRICS = (
    Metric("validation_loss", "validation loss", lambda measured: measured.loss, "{:.3f}".format, lower_is_better=True),
    Metric(
        "perplexity",
        "perplexity",
        lambda measured: None if measured.loss is None else perplexity(measured.loss),
        _format_perplexity,
        lower_is_better=True,
        in_summary=False,
    ),
    Metric(
        "facts",
        "right of {questions} questions",
        _share_correct,
        "{:.0%}".format,
        lower_is_better=False,
        is_share_of_questions=True,
    ),
)


def compute_metrics(base: Measurement, adapted: Measurement) -> dict[str, MetricFigures]:
    """Return the figures of every metric that has data, by its name."""
    figures: dict[str, MetricFigures] = {}
    for metric in METRICS:
        values = metric.compute(base), metric.compute(adapted)
        if values[0] is not None and values[1] is not None:
            figures[metric.name] = {"base": values[0], "adapted": values[1]}
            if metric.is_share_of_questions:
                figures[metric.name]["questions"] = len(base.questions)
    return figures


def find_metric(name: str) -> Metric:
    """Return the metric of this name."""
    return next(metric for metric in METRICS if metric.name == name)


def format_changes(figures: Mapping[str, MetricFigures]) -> str:
    """Format the metrics of the summary in one line, such as `validation loss 2.100 -> 1.200`."""
    return ", ".join(
        f"{metric.format_label(pair.get('questions', 0))} {metric.format(pair['base'])} -> "
        f"{metric.format(pair['adapted'])}"
        for metric in METRICS
        if metric.in_summary and (pair := figures.get(metric.name))
    )


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` answers (Wilson 1927; Brown, Cai and DasGupta 2001)."""
    z = 1.959963984540054
    middle, spread = (
        share + z * z / (2 * count),
        z * math.sqrt(max(0, share * (1 - share)) / count + (z / (2 * count)) ** 2),
    )
    scale = 1 + z * z / count
    return (middle - spread) / scale, (middle + spread) / scale
