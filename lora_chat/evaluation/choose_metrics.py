"""The metrics of a comparison, chosen by its data or by the recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.evaluation.metrics import METRICS, Metric, ReplyItem
from lora_chat.evaluation.questions import Question


@dataclass(frozen=True)
class ChosenMetrics:
    """The metrics of a comparison, and which of them decides the verdict."""

    metrics: Sequence[Metric]
    decisive: str
    """Name of the metric that decides the verdict."""
    reason: str
    """Sentence that says which metrics were chosen, and why."""


def choose_metrics(items: Sequence[ReplyItem], questions: Sequence[Question]) -> ChosenMetrics:
    """Return the metrics for these replies and questions."""
    metrics = [metric for metric in METRICS if metric.items != "replies"]
    decisive = "facts" if questions else "validation_loss"
    return ChosenMetrics(metrics, decisive, f"The verdict is by {decisive}.")
