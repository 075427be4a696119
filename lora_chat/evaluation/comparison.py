"""Comparison of base and adapted model: the same weights with the adapter disabled and enabled."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.config.recipe import EvaluationSection
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.turns import TurnReader
from lora_chat.evaluation.choose_metrics import DEFAULT_DECISIVE, ChosenMetrics, choose_metrics
from lora_chat.evaluation.comparison_report import (
    ComparisonReport,
    ItemReplies,
    QuestionAnswers,
    SampleReplies,
)
from lora_chat.evaluation.general.compare import compare_general
from lora_chat.evaluation.general.measure import measure_general
from lora_chat.evaluation.general.selection import GeneralSet
from lora_chat.evaluation.intervals import Statistics
from lora_chat.evaluation.label_report import report_labels
from lora_chat.evaluation.loss import measure_rows
from lora_chat.evaluation.metrics import (
    Measurement,
    Metric,
    MetricFigures,
    Reply,
    ReplyItem,
    compare_metrics,
    find_metric,
    reduce_to_mean,
)
from lora_chat.evaluation.overlap import MIN_UNSEEN_ITEMS, OverlapReport
from lora_chat.evaluation.prompt_control import MAX_ROWS, PromptControl, compare_prompts, exchange_prompts
from lora_chat.evaluation.questions import Question
from lora_chat.evaluation.reply_items import read_reply_items
from lora_chat.evaluation.verdict import EvaluatedSet, judge
from lora_chat.evaluation.written_calls import are_calls_readable
from lora_chat.inference.generation import generate_replies
from lora_chat.models.adapter import without_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_PROMPT_END_TOKENS = 16
"""Tokens at the end of a prompt in which a template opens the reasoning of a reply."""


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

    `system` precedes every question, and no general item. The prompt of a block of plain text is its first half.
    """
    task = make_task(tokenizer, stop_ids, validation, questions, system, settings)
    if len(validation) or questions:
        logger.info(task.chosen.reason)
    items = general.items if general else ()
    model.eval()
    with without_adapter(model):
        base = task.measure(model, "the base")
        base_general = measure_general(model, tokenizer, stop_ids, items, "the base")
    adapted = task.measure(model, "the adapted model")
    adapted_general = measure_general(model, tokenizer, stop_ids, items, "the adapted model")
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
    control = _measure_control(model, tokenizer, validation) if is_better else None
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


def _measure_control(
    model: "PeftModel", tokenizer: "PreTrainedTokenizerBase", dialogues: DialogueSet
) -> PromptControl | None:
    """Measure replies under their own and under other prompts; None for too few replies."""
    rows = dialogues.rows[: 4 * MAX_ROWS]
    own, others = exchange_prompts(rows)
    if len(own) < min(len(rows), MAX_ROWS):  # the loss is on prompts, too, or these are not dialogues
        items = read_reply_items(dialogues, tokenizer, samples=4 * MAX_ROWS, replies=0)
        own, others = exchange_prompts(rows, [item.prompt_ids for item in items if not item.is_text])
    return compare_prompts(measure_rows(model, own), measure_rows(model, others)) if own else None


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


@dataclass(frozen=True)
class EvaluationTask:
    """Everything that is measured of each model of a comparison."""

    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: Sequence[int]
    validation: DialogueSet
    questions: Sequence[Question]
    items: Sequence[ReplyItem]
    """Held-out prompts that are answered; the samples are the first ones."""
    num_samples: int
    prompts: Sequence[Sequence[int]]
    """Prompts of the items, followed by the questions, as token ids."""
    max_new_tokens: int
    chosen: ChosenMetrics
    generation: GenerationSection = GREEDY

    @property
    def samples(self) -> Sequence[ReplyItem]:
        """Return the items that are shown side by side."""
        return self.items[: self.num_samples]

    def measure(self, model: "PreTrainedModel | PeftModel", model_name: str) -> Measurement:
        """Return the losses of the set and a reply to each prompt; `model_name` is for the progress message."""
        logger.info(f"Measuring {model_name}: {len(self.validation)} held-out dialogues, {len(self.prompts)} replies")
        losses = measure_rows(model, self.validation.rows) if len(self.validation) else None
        replies = (
            generate_replies(model, self.tokenizer, self.prompts, self.stop_ids, self.max_new_tokens, self.generation)
            if self.prompts
            else []
        )
        n = len(self.items)
        return Measurement(losses, self.questions, replies[n:], self.items, self._parse_replies(replies[:n]))

    def _parse_replies(self, replies: Sequence[str]) -> list[Reply]:
        """Return the replies to the items, each with its content without reasoning."""
        reader = TurnReader(self.tokenizer, self.stop_ids)
        pairs = zip(self.items, replies, strict=True)
        return [
            Reply(text, text if item.is_text else reader.parse_reply(self._end_of(item), text)["content"])
            for item, text in pairs
        ]

    def _end_of(self, item: ReplyItem) -> str:
        """Return the end of a prompt, which may open the reasoning of the reply."""
        return str(self.tokenizer.decode(item.prompt_ids[-_PROMPT_END_TOKENS:]))


def _count_cut(items: Sequence[ReplyItem], tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int) -> int:
    """Return the number of references that are longer than a reply may be."""
    return sum(len(tokenizer.encode(item.reference, add_special_tokens=False)) > max_new_tokens for item in items)


def make_task(
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    validation: DialogueSet,
    questions: Sequence[Question],
    system: str | None,
    settings: EvaluationSection,
) -> EvaluationTask:
    """Return the task of a comparison: replies to the validation set, and questions after the system message."""
    items = read_reply_items(validation, tokenizer, samples=settings.samples, replies=settings.reply_count)
    system_messages = [{"role": "system", "content": system}] if system is not None else []
    question_chats = [[*system_messages, {"role": "user", "content": q.question}] for q in questions]
    prompts = [item.prompt_ids for item in items]
    prompts += [render_ids(tokenizer, chat, add_generation_prompt=True) for chat in question_chats]
    return EvaluationTask(
        tokenizer,
        stop_ids,
        validation,
        questions,
        items,
        settings.samples,
        prompts,
        settings.max_new_tokens,
        choose_metrics(
            items,
            questions,
            settings,
            _count_cut(items, tokenizer, settings.max_new_tokens),
            reads_calls=are_calls_readable(items, tokenizer, stop_ids),
        ),
        settings.generation,
    )
