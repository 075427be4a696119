"""A metric of base and adapted model: its figures with intervals, and its verdict."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from typing_extensions import NotRequired, TypedDict

from lora_chat.evaluation.intervals import (
    MIN_ITEMS,
    SIGNIFICANCE,
    Interval,
    PairedFigures,
    Reduce,
    Statistics,
    compare_by_bootstrap,
    compare_right_or_wrong,
)
from lora_chat.evaluation.measurement import Measurement, Reply

Score: TypeAlias = Callable[[Measurement], Statistics | None]


Word = Literal["better", "worse", "no difference shown", "withheld"]


class MetricFigures(TypedDict):
    """The values of one metric, as in JSON. Old reports have only the values themselves."""

    base: float
    adapted: float
    questions: NotRequired[int]
    """Number of questions, for a metric that is a share of them."""
    items: NotRequired[int]
    """Number of rows, questions or replies."""
    base_interval: NotRequired[Interval]
    adapted_interval: NotRequired[Interval]
    difference: NotRequired[float]
    """Value of the adapted model minus that of the base."""
    difference_interval: NotRequired[Interval]
    p_value: NotRequired[float]
    verdict: NotRequired[Word]
    needed_items: NotRequired[int | None]
    """Number of items that would show a difference of this size; None if it is shown, or if both are equal."""
    constant: NotRequired[float]
    """Value of always giving the most frequent reference, for a metric of right and wrong replies."""
    constant_p_value: NotRequired[float]
    """Probability of a difference as large as that of the adapted model from this value if they are equal."""


def reduce_to_mean(totals: Statistics) -> Statistics:
    """Return the first statistic divided by the second, (...); not a number where the second is zero."""
    numerators, denominators = totals[..., 0], totals[..., 1]
    return np.divide(numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators != 0)


def reduce_to_perplexity(totals: Statistics) -> Statistics:
    """Return exp(mean), (...), or infinity if it overflows."""
    with np.errstate(over="ignore"):
        return np.exp(reduce_to_mean(totals))


def count_each(values: Sequence[float] | Sequence[bool]) -> Statistics:
    """Return statistics (items, 2) of a metric that is the mean of one value per item."""
    column = np.asarray(values, np.float64)
    return np.stack([column, np.ones_like(column)], axis=1)


def _keep_counted(base: Statistics, adapted: Statistics) -> tuple[Statistics, Statistics]:
    """Return the statistics of the items that count; a reference without a number does not, for example."""
    is_counted = base[:, 1] > 0
    return base[is_counted], adapted[is_counted]


@dataclass(frozen=True)
class Metric:
    """A metric: its name, how it is computed, and how it is shown."""

    name: str
    """Key in JSON."""
    label: str
    """Label of a table row; `{questions}` is replaced by the number of questions."""
    items: Literal["rows", "questions", "replies"]
    """The items over which it is computed, and which are resampled for its interval."""
    score: Score
    """Function that returns additive statistics of each item, (items, statistics), or None without data."""
    format: Callable[[float], str]
    lower_is_better: bool
    reduce: Reduce = reduce_to_mean
    """Function from statistics summed over items, (..., statistics), to the values of the metric, (...)."""
    is_right_or_wrong: bool = False
    """Whether the first statistic says if an item is right, so that the exact McNemar test decides."""
    is_share: bool = False
    """Whether values are shares from 0 to 1, whose differences are shown in points."""
    in_summary: bool = True
    """Whether one-line summaries and model cards show it."""

    @property
    def is_share_of_questions(self) -> bool:
        """Return whether the value is a share of the questions."""
        return self.items == "questions"

    def compute(self, measured: Measurement) -> float | None:
        """Return the value of one model, or None without data."""
        statistics = self.score(measured)
        return None if statistics is None or not len(statistics) else float(self.reduce(statistics.sum(axis=0)))

    def compare(self, base: Measurement, adapted: Measurement) -> MetricFigures | None:
        """Return the values of both models with intervals and a verdict, or None without data."""
        bases, adapteds = self.score(base), self.score(adapted)
        if bases is None or adapteds is None:
            return None
        if self.reduce is reduce_to_mean:
            bases, adapteds = _keep_counted(bases, adapteds)
        if not len(bases):
            return None
        if self.is_right_or_wrong:
            paired = compare_right_or_wrong(bases[:, 0] > 0, adapteds[:, 0] > 0)
        else:
            paired = compare_by_bootstrap(bases, adapteds, self.reduce)
        figures = self._make_figures(paired, len(bases))
        return figures | self._compare_constant(adapted) if self.is_right_or_wrong else figures

    def _compare_constant(self, adapted: Measurement) -> MetricFigures:
        """Return the figures of always giving the most frequent reference; none if all of them differ."""
        nothing: MetricFigures = {}  # type: ignore[typeddict-item]
        if self.items == "questions":
            accepted = [sorted({text.lower() for text in question.accept}) for question in adapted.questions]
        else:
            accepted = [[item.reference] for item in adapted.items]
        if not accepted:
            return nothing
        (answer, count), *_ = Counter(text for texts in accepted for text in texts).most_common(1)
        constant = replace(
            adapted,
            answers=[answer] * len(adapted.questions),
            replies=[Reply(answer, answer)] * len(adapted.items),
        )
        scores, own = self.score(constant), self.score(adapted)
        if count < 2 or scores is None or own is None:
            return nothing
        constants, adapteds = _keep_counted(scores, own)
        paired = compare_right_or_wrong(constants[:, 0] > 0, adapteds[:, 0] > 0)
        return nothing | {"constant": paired.base, "constant_p_value": paired.p_value}

    def _make_figures(self, paired: PairedFigures, items: int) -> MetricFigures:
        """Return the figures for JSON, with the verdict."""
        is_shown = items >= MIN_ITEMS and paired.is_finite and paired.p_value < SIGNIFICANCE
        word: Word = "no difference shown"
        if self.lower_is_better and math.isfinite(paired.base) and not math.isfinite(paired.adapted):
            word = "worse"  # a model that overflows
        elif is_shown:
            word = "better" if self.is_improved(paired.base, paired.adapted) else "worse"
        figures: MetricFigures = {"base": paired.base, "adapted": paired.adapted, "items": items, "verdict": word}
        if self.is_share_of_questions:
            figures["questions"] = items
        figures["needed_items"] = None if is_shown else paired.needed_items
        if paired.is_finite:  # the perplexity of a model that diverged is not
            figures["difference"] = paired.adapted - paired.base
            figures["base_interval"], figures["adapted_interval"] = paired.base_interval, paired.adapted_interval
            figures["difference_interval"], figures["p_value"] = paired.difference_interval, paired.p_value
        return figures

    def format_label(self, questions: int) -> str:
        """Return the label of a table row."""
        return self.label.format(questions=questions)

    def format_with_interval(self, value: float, interval: Interval) -> str:
        """Format a value with its 95 % interval."""
        return f"{self.format(value)} ({self.format(interval[0])} to {self.format(interval[1])})"

    def is_improved(self, base: float, adapted: float) -> bool:
        """Return whether the adapted model is better than the base."""
        return adapted < base if self.lower_is_better else adapted > base
