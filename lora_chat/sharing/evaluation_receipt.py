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
from lora_chat.evaluation.general.selection import SHIPPED_NAME
from lora_chat.evaluation.intervals import MIN_ITEMS, SIGNIFICANCE
from lora_chat.evaluation.metrics import METRICS, MetricFigures, Word, find_metric
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.prompt_control import PromptControl
from lora_chat.evaluation.verdict import Verdict, VerdictWord, judge
from lora_chat.sharing.ability_receipts import (
    Figure,
    FigureInterval,
    GeneralReceipt,
    KeptStepReceipt,
    OverlapReceipt,
    PromptControlReceipt,
    RecitalReceipt,
)
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
    constant: Proportion | None = None
    """Value of always giving the most frequent reference."""
    constant_p_value: Proportion | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if figures, intervals and verdict contradict one another."""
        if any(low > high for low, high in (self.base_interval, self.adapted_interval, self.difference_interval)):
            raise ValueError("an interval ends before it begins")
        if (self.constant is None) != (self.constant_p_value is None):
            raise ValueError("a constant answer has a value without a p-value, or the reverse")
        is_shown = self.items >= MIN_ITEMS and self.p_value < SIGNIFICANCE
        if self.verdict != "withheld" and is_shown == (self.verdict == "no difference shown"):
            raise ValueError("the verdict does not follow from the p-value and the number of items")
        if (is_shown or self.verdict == "withheld") and self.needed_items is not None:
            raise ValueError("a difference that is shown or withheld needs no more items")
        return self

    def as_figures(self, *, of_questions: bool) -> MetricFigures:
        """Return the figures in the form of a comparison."""
        figures = cast(MetricFigures, self.model_dump(exclude_none=True))
        figures["needed_items"] = self.needed_items
        figures["difference"] = self.adapted - self.base
        return {**figures, "questions": self.items} if of_questions else figures


class VerdictReceipt(StrictModel):
    """The verdict of a comparison, without its words."""

    word: VerdictWord
    metric: Annotated[str, StringConstraints(pattern=r"^[a-z][A-Za-z0-9_]{0,39}$")] | None
    needed_items: Count | None


class EvaluationReceipt(StrictModel):
    """The comparison of base and adapted model on held-out data."""

    set: Literal["validation", "test"]
    digest: Sha256Digest | None
    """SHA-256 of the files of the set in the run folder; None without dialogues."""
    dialogues: Count
    used_twice: bool
    """Whether the set chose the checkpoint, too."""
    figures: Annotated[dict[ShortText, FigureReceipt], Field(max_length=len(RECEIPT_METRICS))]
    verdict: VerdictReceipt
    overlap: OverlapReceipt | None
    control: PromptControlReceipt | None
    general: GeneralReceipt | None
    recital: RecitalReceipt | None
    kept_step: KeptStepReceipt | None
    replies: Count | None = None
    """Number of held-out prompts that both models answered, of which a metric may count fewer."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if the verdict does not follow from the figures, or a metric is unknown."""
        if unknown := sorted(set(self.figures) - set(RECEIPT_METRICS)):
            raise ValueError(f"{unknown[0]!a} is not a metric of version 4")
        for name, figure in self.figures.items():
            is_better = find_metric(name).is_improved(figure.base, figure.adapted)
            if figure.verdict == ("worse" if is_better else "better"):
                raise ValueError(f"the verdict of {name} contradicts its figures")
        loss, perplexity = (self.figures.get(name) for name in ("validation_loss", "perplexity"))
        if loss and perplexity and abs(math.log(max(perplexity.adapted, 1e-300)) - loss.adapted) > 1e-3:
            raise ValueError("the perplexity is not that of the loss")
        overlap = self.overlap.as_report() if self.overlap else OverlapReport(0)
        for name, figure in self.figures.items():
            if (figure.verdict == "withheld") != overlap.withholds(find_metric(name).items):
                raise ValueError(f"the verdict of {name} does not follow from the dialogues that were trained on")
        metric = self.verdict.metric
        if metric is not None and metric not in self.figures:
            raise ValueError("the verdict is by a metric without figures")
        verdict = self.make_verdict()
        if (verdict.word, verdict.needed_items) != (self.verdict.word, self.verdict.needed_items):
            raise ValueError(f"the verdict is {self.verdict.word!a}, but {verdict.word!a} follows from the figures")
        return self

    @property
    def metric_figures(self) -> dict[str, MetricFigures]:
        """Return all figures in the form of a comparison, in the order of the table of metrics."""
        return {
            metric.name: self.figures[metric.name].as_figures(of_questions=metric.is_share_of_questions)
            for metric in METRICS
            if metric.name in self.figures
        }

    def make_verdict(self) -> Verdict:
        """Return the verdict with its words, which are made as those of the comparison."""
        return judge(
            find_metric(self.verdict.metric) if self.verdict.metric else None,
            self.metric_figures,
            overlap=self.overlap.as_report() if self.overlap else None,
            general=self.general.clause if self.general else None,
            control=PromptControl(**self.control.model_dump()) if self.control else None,
            used_twice=self.used_twice,
        )


def make_evaluation_receipt(
    comparison: Mapping[str, object], digest: str | None, kept_step: tuple[int, int] | None = None
) -> EvaluationReceipt | None:
    """Return the evaluation of a run's `comparison.json`; None for a run of a version without verdicts.

    `digest` is the SHA-256 of the evaluated set. `kept_step` has the kept and the last step. Raises ValueError for a
    damaged comparison.
    """
    verdict, figures = comparison.get("verdict"), comparison.get("figures")
    if not isinstance(verdict, Mapping) or not isinstance(figures, Mapping):
        return None
    known = {name: figures[name] for name in RECEIPT_METRICS if name in figures and _is_finite(figures[name])}
    if verdict.get("metric") is not None and verdict["metric"] not in known:
        return None  # the loss of a model that diverged
    general, recital = _copy_object(comparison, "general"), _copy_object(comparison, "recital")
    if general is not None:
        general["shipped"] = general.get("set_name") == SHIPPED_NAME
    return EvaluationReceipt.model_validate(
        {
            "set": comparison.get("set"),
            "digest": digest,
            "dialogues": comparison.get("validation_dialogues"),
            "used_twice": comparison.get("used_twice"),
            "figures": {name: _pick(figure, FigureReceipt) for name, figure in known.items()},
            "verdict": _pick(verdict, VerdictReceipt),
            "overlap": _pick(_copy_object(comparison, "overlap"), OverlapReceipt),
            "control": _pick(_copy_object(comparison, "control"), PromptControlReceipt),
            "general": _pick(general, GeneralReceipt),
            "recital": _pick(recital, RecitalReceipt),
            "kept_step": {"step": kept_step[0], "last_step": kept_step[1]} if kept_step else None,
            "replies": len(items) if isinstance(items := comparison.get("items"), list) else None,
        }
    )


def _copy_object(comparison: Mapping[str, object], key: str) -> dict[str, object] | None:
    """Return a copy of an object in a comparison; None if it is missing."""
    value = comparison.get(key)
    return dict(value) if isinstance(value, Mapping) else None


def _pick(values: Mapping[str, object] | None, model: type[StrictModel]) -> dict[str, object] | None:
    """Return the fields of a model, with JSON's lists as tuples."""
    if values is None:
        return None
    fields = {key: values[key] for key in model.model_fields if key in values}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _is_finite(figure: object) -> bool:
    """Return whether a figure has finite values, which the perplexity of a diverged model has not."""
    if not isinstance(figure, Mapping):
        return False
    interval = figure.get("difference_interval")
    return isinstance(interval, list | tuple) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in interval
    )
