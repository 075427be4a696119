"""Comparison of base and adapted model: the same weights with the adapter disabled and enabled."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.config.recipe import EvaluationSection
from lora_chat.data.dataset import DialogueSet
from lora_chat.evaluation.choose_metrics import DEFAULT_DECISIVE, ChosenMetrics
from lora_chat.evaluation.comparison_report import (
    ComparisonReport,
    ItemReplies,
    QuestionAnswers,
    SampleReplies,
)
from lora_chat.evaluation.general.compare import compare_general
from lora_chat.evaluation.general.measure import PendingGeneral, start_general
from lora_chat.evaluation.general.selection import GeneralSet
from lora_chat.evaluation.intervals import Statistics
from lora_chat.evaluation.label_report import report_labels
from lora_chat.evaluation.metrics import (
    Measurement,
    Metric,
    MetricFigures,
    compare_metrics,
    find_metric,
    reduce_to_mean,
)
from lora_chat.evaluation.overlap import MIN_UNSEEN_ITEMS, OverlapReport
from lora_chat.evaluation.prompt_control import MAX_ROWS, PromptControl, compare_prompts, exchange_prompts
from lora_chat.evaluation.questions import Question
from lora_chat.evaluation.reply_items import read_reply_items
from lora_chat.evaluation.shared_measurements import SharedMeasurements
from lora_chat.evaluation.task import EvaluationTask, PendingMeasurement, make_task
from lora_chat.evaluation.verdict import EvaluatedSet, judge
from lora_chat.models.adapter import without_adapter
from lora_chat.processes.group import current_group

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def compare_with_base(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    validation: DialogueSet,
    questions: Sequence[Question],
    system: str | None,
    settings: EvaluationSection,
    evaluated_set: EvaluatedSet = "validation",
    *,
    used_twice: bool = False,
    overlap: OverlapReport | None = None,
    general: GeneralSet | None = None,
) -> ComparisonReport:
    """Measure loss, held-out replies, answers and general abilities with the adapter disabled and enabled.

    `system` precedes every question, and no general item. The prompt of a block of plain text is its first half. The
    other processes of a group call `help_to_compare`.
    """
    task = make_task(tokenizer, stop_ids, validation, questions, system, settings)
    if len(validation) or questions:
        logger.info(task.chosen.reason)
    (base, base_general), (adapted, adapted_general) = [
        (outputs.read(), replies.read()) for outputs, replies in _measure_models(model, task, general)
    ]
    general_report = compare_general(general, base_general, adapted_general) if general else None
    chosen = task.chosen
    figures = withhold_seen(compare_metrics(base, adapted, chosen.metrics), chosen.metrics, overlap)
    measured = [metric for metric in chosen.metrics if metric.name in figures]
    # A metric may be left out after the replies, such as a pattern that takes too long on them.
    # The replies of a model with non-finite losses say nothing.
    names = (chosen.decisive, DEFAULT_DECISIVE) if _has_finite_loss(figures) else (DEFAULT_DECISIVE,)
    decisive = next((metric for name in names for metric in measured if metric.name == name), None)
    is_by_loss = decisive is not None and decisive.name == DEFAULT_DECISIVE
    is_better = is_by_loss and figures[DEFAULT_DECISIVE].get("verdict") == "better"
    needs_control = current_group().share_json(is_better)  # only this process knows the figures
    control = _measure_control(model, tokenizer, validation) if needs_control else None
    return ComparisonReport(
        figures=figures,
        validation_dialogues=len(validation),
        samples=tuple(
            SampleReplies(item.prompt, item.reference, base_reply.text, reply.text)
            for item, base_reply, reply in zip(task.samples, base.replies, adapted.replies, strict=False)
        ),
        answers=tuple(
            QuestionAnswers(q.question, b, a, q.is_answered_by(b), q.is_answered_by(a))
            for q, b, a in zip(questions, base.answers, adapted.answers, strict=True)
        ),
        verdict=judge(
            decisive,
            figures,
            overlap=overlap,
            general=general_report.clause if general_report else None,
            control=control,
            used_twice=used_twice,
        ),
        metrics=chosen.metrics,
        reason=chosen.reason,
        items=_collect_items(chosen, base, adapted),
        evaluated_set=evaluated_set,
        used_twice=used_twice,
        overlap=overlap,
        unseen_figures=compare_unseen(base, adapted, overlap),
        measurements=(base, adapted),
        control=control,
        general=general_report,
        labels=report_labels(base, adapted) if "accuracy" in figures else None,
    )


def help_to_compare(model: "PeftModel", task: EvaluationTask, general: GeneralSet | None = None) -> None:
    """Measure a share of a task for the first process, which calls `compare_with_base`."""
    _measure_models(model, task, general)
    if current_group().share_json(False):
        _measure_control(model, task.tokenizer, task.validation)


def _measure_models(
    model: "PeftModel", task: EvaluationTask, general: GeneralSet | None
) -> list[tuple[PendingMeasurement, PendingGeneral]]:
    """Measure base and adapted model together with the other processes."""
    items = general.items if general else ()
    shared = SharedMeasurements(current_group())
    measured = []
    model.eval()
    for name, state in (("the base", without_adapter(model)), ("the adapted model", nullcontext())):
        with state:
            outputs = task.start(model, name, shared)
            measured.append((outputs, start_general(model, task.tokenizer, task.stop_ids, items, name, shared)))
    shared.exchange()
    return measured


def _measure_control(
    model: "PeftModel", tokenizer: "PreTrainedTokenizerBase", dialogues: DialogueSet
) -> PromptControl | None:
    """Measure replies under their own and under other prompts; None for too few replies."""
    rows = dialogues.rows[: 4 * MAX_ROWS]
    own, others = exchange_prompts(rows)
    if len(own) < min(len(rows), MAX_ROWS):  # the loss is on prompts, too, or these are not dialogues
        items = read_reply_items(dialogues, tokenizer, samples=4 * MAX_ROWS, replies=0)
        own, others = exchange_prompts(rows, [item.prompt_ids for item in items if not item.is_text])
    if not own:
        return None
    shared = SharedMeasurements(current_group())
    losses = shared.measure_rows(model, own), shared.measure_rows(model, others)
    shared.exchange()
    return compare_prompts(*(each.read() for each in losses))


def _has_finite_loss(figures: Mapping[str, MetricFigures]) -> bool:
    """Return whether the loss of the adapted model is finite, or was not measured."""
    return DEFAULT_DECISIVE not in figures or math.isfinite(figures[DEFAULT_DECISIVE]["adapted"])


def withhold_seen(
    figures: dict[str, MetricFigures], metrics: Sequence[Metric], overlap: OverlapReport | None
) -> dict[str, MetricFigures]:
    """Return the figures without the verdicts of metrics whose items were trained on."""
    for metric in metrics:
        if overlap and "verdict" in figures.get(metric.name, {}) and overlap.withholds(metric.items):
            figures[metric.name]["verdict"] = "withheld"
            figures[metric.name]["needed_items"] = None
    return figures


def compare_unseen(base: Measurement, adapted: Measurement, overlap: OverlapReport | None) -> MetricFigures | None:
    """Return the figures of the loss on unseen rows; None if the verdict is not withheld, or if they are few."""
    if overlap is None or not overlap.withholds_dialogues or overlap.unseen < MIN_UNSEEN_ITEMS:
        return None
    if base.losses is None or adapted.losses is None or len(base.losses.tokens) != len(overlap.unseen_rows):
        return None
    unseen = [
        replace(measured, losses=measured.losses.select(overlap.unseen_rows)) if measured.losses else measured
        for measured in (base, adapted)
    ]
    return find_metric("validation_loss").compare(*unseen)


def _collect_items(chosen: ChosenMetrics, base: Measurement, adapted: Measurement) -> tuple[ItemReplies, ...]:
    """Return the replies to each item with the value of each metric of replies."""
    scores: dict[str, list[tuple[float | None, float | None]]] = {}
    for metric in chosen.metrics:
        statistics = (metric.score(base), metric.score(adapted)) if metric.items == "replies" else (None, None)
        if statistics[0] is not None and statistics[1] is not None:
            base_values, adapted_values = (_list_values(metric, each) for each in statistics if each is not None)
            scores[metric.name] = list(zip(base_values, adapted_values, strict=True))
    return tuple(
        ItemReplies(
            item.prompt, item.reference, base_reply.text, reply.text, {name: scores[name][i] for name in scores}
        )
        for i, (item, base_reply, reply) in enumerate(zip(base.items, base.replies, adapted.replies, strict=True))
    )


def _list_values(metric: Metric, statistics: Statistics) -> list[float | None]:
    """Return the value of a metric for each item; None if the item does not count."""
    values: list[float] = metric.reduce(statistics).tolist()
    is_mean = metric.reduce is reduce_to_mean
    return [None if is_mean and not row.any() else value for value, row in zip(values, statistics, strict=True)]
