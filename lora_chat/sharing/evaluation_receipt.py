"""Strict models of the evaluation in a receipt of version 4: figures with intervals, and the verdict.

The figures are claims of the sender. The words of the verdict are made from them again, so that receipt, card and
report cannot say different things.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, cast

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.evaluation.intervals import MIN_ITEMS, SIGNIFICANCE
from lora_chat.evaluation.metrics import METRICS, MetricFigures, Word, find_metric
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.verdict import Verdict, VerdictWord, judge
from lora_chat.sharing.figures import Count, Proportion, Sha256Digest, ShortText

RECEIPT_METRICS = (
    "validation_loss",
    "perplexity",
    "token_accuracy",
    "facts",
    "exact_match",
    "token_f1",
    "bleu",
    "chrf",
    "rouge1",
    "rouge2",
    "rougeL",
    "numeric_match",
    "contains",
    "json_valid",
    "json_match",
    "tool_calls",
    "accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
)
"""Names of the metrics in version 4. A card lists them by their words of today, which belong to the version too."""
Figure = Annotated[float, Field(ge=-1e300, le=1e300)]
FigureInterval = tuple[Figure, Figure]


class FigureReceipt(StrictModel):
    """One metric of base and adapted model on the same items, with 95 % intervals."""

    base: Figure
    adapted: Figure
    items: Annotated[int, Field(ge=1, le=2**53)]
    base_interval: FigureInterval
    adapted_interval: FigureInterval
    difference_interval: FigureInterval
    p_value: Proportion
    verdict: Word
    needed_items: Annotated[int, Field(ge=MIN_ITEMS, le=2**53)] | None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if figures, intervals and verdict contradict one another."""
        if any(low > high for low, high in (self.base_interval, self.adapted_interval, self.difference_interval)):
            raise ValueError("an interval ends before it begins")
        is_shown = self.items >= MIN_ITEMS and self.p_value < SIGNIFICANCE
        if self.verdict != "withheld" and is_shown == (self.verdict == "no difference shown"):
            raise ValueError("the verdict does not follow from the p-value and the number of items")
        if (is_shown or self.verdict == "withheld") and self.needed_items is not None:
            raise ValueError("a difference that is shown or withheld needs no more items")
        return self

    def as_figures(self, *, of_questions: bool) -> MetricFigures:
        """Return the figures in the form of a comparison."""
        figures = cast(MetricFigures, self.model_dump())
        figures["difference"] = self.adapted - self.base
        return {**figures, "questions": self.items} if of_questions else figures


class VerdictReceipt(StrictModel):
    """The verdict of a comparison, without its words."""

    word: VerdictWord
    metric: Annotated[str, StringConstraints(pattern=r"^[a-z][A-Za-z0-9_]{0,39}$")] | None
    needed_items: Count | None


class OverlapReceipt(StrictModel):
    """How many of the held-out dialogues and questions were trained on."""

    items: Count
    exact: Count
    near: Count
    same_question: Count
    same_reply: Count
    questions: Count
    seen_questions: Count

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if more were seen than there are."""
        if self.exact + self.near + self.same_question + self.same_reply > self.items:
            raise ValueError("more dialogues were seen than there are")
        if self.seen_questions > self.questions:
            raise ValueError("more questions were seen than there are")
        return self

    @property
    def report(self) -> OverlapReport:
        """Return the counts in the form of a comparison."""
        return OverlapReport(**self.model_dump())


class EvaluationReceipt(StrictModel):
    """The comparison of base and adapted model on held-out data."""

    set: Literal["validation", "test"]
    digest: Sha256Digest | None
    """SHA-256 of the files of the set in the run folder; None without dialogues."""
    dialogues: Count
    used_twice: bool
    """Whether the set chose the checkpoint, too."""
    overlap: OverlapReceipt | None
    """How much of the set was trained on; None if it is unknown."""
    figures: Annotated[dict[ShortText, FigureReceipt], Field(max_length=len(RECEIPT_METRICS))]
    verdict: VerdictReceipt

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if the verdict is not that of its metric, or a metric is unknown."""
        if unknown := sorted(set(self.figures) - set(RECEIPT_METRICS)):
            raise ValueError(f"{unknown[0]!a} is not a metric of version 4")
        for name, figure in self.figures.items():
            is_better = find_metric(name).is_improved(figure.base, figure.adapted)
            if figure.verdict == ("worse" if is_better else "better"):
                raise ValueError(f"the verdict of {name} contradicts its figures")
        loss, perplexity = (self.figures.get(name) for name in ("validation_loss", "perplexity"))
        if loss and perplexity and abs(math.log(max(perplexity.adapted, 1e-300)) - loss.adapted) > 1e-3:
            raise ValueError("the perplexity is not that of the loss")
        for name, figure in self.figures.items():
            if (figure.verdict == "withheld") != self._withholds(name):
                raise ValueError(f"the verdict of {name} does not follow from the dialogues that were trained on")
        verdict, decisive = self.verdict, self.figures.get(self.verdict.metric or "")
        if verdict.word == "not measured":
            return self
        if decisive is None:
            raise ValueError("the verdict is by a metric without figures")
        if (verdict.word, verdict.needed_items) != (decisive.verdict, decisive.needed_items):
            raise ValueError("the verdict is not that of its metric")
        return self

    def _withholds(self, name: str) -> bool:
        """Return whether the verdict of a metric is withheld."""
        return self.overlap is not None and self.overlap.report.withholds(find_metric(name).items)

    @property
    def metric_figures(self) -> dict[str, MetricFigures]:
        """Return all figures in the form of a comparison, in the order of the table of metrics."""
        return {
            metric.name: self.figures[metric.name].as_figures(of_questions=metric.is_share_of_questions)
            for metric in METRICS
            if metric.name in self.figures
        }

    def make_verdict(self) -> Verdict:
        """Return the verdict with its words."""
        metric = find_metric(self.verdict.metric) if self.verdict.metric else None
        overlap = self.overlap.report if self.overlap else None
        return judge(metric, self.metric_figures, overlap=overlap, used_twice=self.used_twice)


def make_evaluation_receipt(comparison: Mapping[str, object], digest: str | None) -> EvaluationReceipt | None:
    """Return the evaluation of a run's `comparison.json`; None for a run of a version without verdicts.

    `digest` is the SHA-256 of the evaluated set. Raises ValueError for a damaged comparison.
    """
    verdict, figures = comparison.get("verdict"), comparison.get("figures")
    if not isinstance(verdict, Mapping) or not isinstance(figures, Mapping):
        return None
    known = {name: figures[name] for name in RECEIPT_METRICS if name in figures}
    if verdict.get("metric") is not None and verdict["metric"] not in known:
        return None  # the metric of a user's own file
    return EvaluationReceipt.model_validate(
        {
            "set": comparison.get("set"),
            "digest": digest,
            "dialogues": comparison.get("validation_dialogues"),
            "used_twice": comparison.get("used_twice"),
            "overlap": _read_overlap(comparison.get("overlap")),
            "figures": {name: _make_figure(figure) for name, figure in known.items() if _is_finite(figure)},
            "verdict": {key: verdict.get(key) for key in VerdictReceipt.model_fields},
        }
    )


def _read_overlap(overlap: object) -> dict[str, object] | None:
    """Return the counts of an overlap; None if it is unknown."""
    if not isinstance(overlap, Mapping):
        return None
    return {key: overlap.get(key) for key in OverlapReceipt.model_fields}


def _make_figure(figure: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a figure, with JSON's lists as pairs."""
    values = {key: figure.get(key) for key in FigureReceipt.model_fields}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _is_finite(figure: object) -> bool:
    """Return whether a figure has finite values, which the perplexity of a diverged model has not."""
    if not isinstance(figure, Mapping):
        return False
    interval = figure.get("difference_interval")
    return isinstance(interval, list | tuple) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in interval
    )
