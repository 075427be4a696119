"""The metrics that compare an adapted model with its base, in one table.

Comparison text, JSON, receipt, model card and report iterate over `METRICS`. Receipts contain only the metrics of their
version (`sharing/figures.py`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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

# Callers import the types of a measurement from this module, too.
from lora_chat.evaluation.measurement import Measurement as Measurement
from lora_chat.evaluation.measurement import Reply as Reply
from lora_chat.evaluation.measurement import ReplyItem as ReplyItem
from lora_chat.evaluation.reply_scores import (
    score_bleu,
    score_calls,
    score_chrf,
    score_counted,
    score_each,
    score_label_classes,
    score_labels,
)
from lora_chat.evaluation.scores.answers import contains, exact_match, token_f1
from lora_chat.evaluation.scores.json_texts import json_match, json_valid
from lora_chat.evaluation.scores.labels import macro_f1, macro_precision, macro_recall
from lora_chat.evaluation.scores.numbers import numeric_match
from lora_chat.evaluation.scores.rouge import rouge_1, rouge_2, rouge_l
from lora_chat.evaluation.scores.translation import bleu, chrf

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


def _score_losses(measured: Measurement) -> Statistics | None:
    """Return loss and tokens of each row."""
    if measured.losses is None:
        return None
    return np.array([measured.losses.losses, measured.losses.tokens], np.float64).T


def _score_tokens(measured: Measurement) -> Statistics | None:
    """Return right top tokens and tokens of each row."""
    if measured.losses is None:
        return None
    return np.array([measured.losses.right_tokens, measured.losses.tokens], np.float64).T


def _score_questions(measured: Measurement) -> Statistics | None:
    """Return whether each question has a correct answer."""
    if not measured.questions:
        return None
    pairs = zip(measured.questions, measured.answers, strict=True)
    return count_each([question.is_answered_by(answer) for question, answer in pairs])


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
        """Return the figures of always giving the most frequent reference; none for questions."""
        nothing: MetricFigures = {}  # type: ignore[typeddict-item]
        if self.items != "replies" or not adapted.items:
            return nothing
        (answer, count), *_ = Counter(item.reference for item in adapted.items).most_common(1)
        constant = replace(adapted, replies=[Reply(answer, answer)] * len(adapted.items))
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
        if is_shown:
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


def _share(name: str, label: str, score: Score, reduce: Reduce = reduce_to_mean, *, in_summary: bool = True) -> Metric:
    """Return a metric of replies whose values are shares."""
    return Metric(
        name,
        label,
        "replies",
        score,
        "{:.1%}".format,
        lower_is_better=False,
        reduce=reduce,
        is_share=True,
        in_summary=in_summary,
    )


def _right_or_wrong(name: str, label: str, score: Score, *, in_summary: bool = True) -> Metric:
    """Return a metric of replies that are right or wrong."""
    return replace(_share(name, label, score, in_summary=in_summary), is_right_or_wrong=True)


METRICS = (
    Metric("validation_loss", "validation loss", "rows", _score_losses, "{:.3f}".format, lower_is_better=True),
    Metric(
        "perplexity",
        "perplexity",
        "rows",
        _score_losses,
        _format_perplexity,
        lower_is_better=True,
        reduce=reduce_to_perplexity,
        in_summary=False,
    ),
    Metric(
        "token_accuracy",
        "right top tokens",
        "rows",
        _score_tokens,
        "{:.1%}".format,
        lower_is_better=False,
        is_share=True,
        in_summary=False,
    ),
    Metric(
        "facts",
        "right of {questions} questions",
        "questions",
        _score_questions,
        "{:.0%}".format,
        lower_is_better=False,
        is_right_or_wrong=True,
        is_share=True,
    ),
    _right_or_wrong("exact_match", "exact match", score_each(exact_match)),
    _right_or_wrong("contains", "contains reference", score_each(contains), in_summary=False),
    _share("token_f1", "token F1", score_each(token_f1)),
    _right_or_wrong("numeric_match", "numeric match", score_counted(numeric_match)),
    _right_or_wrong("json_valid", "valid JSON", score_each(json_valid), in_summary=False),
    _right_or_wrong("json_match", "JSON match", score_counted(json_match)),
    _right_or_wrong("tool_calls", "tool-call match", score_calls),
    _right_or_wrong("accuracy", "accuracy", score_labels),
    _share("macro_precision", "macro precision", score_label_classes, macro_precision, in_summary=False),
    _share("macro_recall", "macro recall", score_label_classes, macro_recall, in_summary=False),
    _share("macro_f1", "macro F1", score_label_classes, macro_f1),
    _share("rouge1", "ROUGE-1", score_each(rouge_1), in_summary=False),
    _share("rouge2", "ROUGE-2", score_each(rouge_2), in_summary=False),
    _share("rougeL", "ROUGE-L", score_each(rouge_l)),
    Metric("bleu", "BLEU", "replies", score_bleu, "{:.1f}".format, lower_is_better=False, reduce=bleu),
    Metric("chrf", "chrF", "replies", score_chrf, "{:.1f}".format, lower_is_better=False, reduce=chrf),
)


def compare_metrics(
    base: Measurement, adapted: Measurement, metrics: Sequence[Metric] | None = None
) -> dict[str, MetricFigures]:
    """Return the figures of every metric that has data, by its name."""
    chosen = METRICS if metrics is None else metrics
    pairs = ((metric.name, metric.compare(base, adapted)) for metric in chosen)
    return {name: figures for name, figures in pairs if figures is not None}


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
