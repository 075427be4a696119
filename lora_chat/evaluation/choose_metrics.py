"""The metrics of a comparison, chosen by its data or by the recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from lora_chat.config.recipe import EvaluationSection
from lora_chat.evaluation.intervals import MIN_ITEMS
from lora_chat.evaluation.metrics import METRICS, Metric, ReplyItem, find_metric
from lora_chat.evaluation.questions import Question
from lora_chat.evaluation.reply_kinds import REPLY_KINDS, find_kinds, lacks_data
from lora_chat.evaluation.reply_scores import find_references, score_numbers
from lora_chat.evaluation.scores.translation import choose_tokenizer

DEFAULT_DECISIVE = "validation_loss"
"""Name of the metric that decides without a metric of replies that may."""
_TITLES = {"facts": "the questions", DEFAULT_DECISIVE: "the validation loss"}
_MAX_CUT = 0.2
"""Share of references that may be longer than a reply, so that right or wrong replies still decide."""


@dataclass(frozen=True)
class ChosenMetrics:
    """The metrics of a comparison, and which of them decides the verdict."""

    metrics: Sequence[Metric]
    decisive: str
    """Name of the metric that decides the verdict."""
    reason: str
    """Sentence that says which metrics were chosen, and why."""


def choose_metrics(
    items: Sequence[ReplyItem],
    questions: Sequence[Question],
    settings: EvaluationSection,
    num_cut: int = 0,
    *,
    reads_calls: bool = True,
) -> ChosenMetrics:
    """Return the metrics for these replies and questions: by the data, or the list of the recipe.

    Losses and questions are always measured. The verdict is by the questions, otherwise by the first metric of a list,
    or by the first one of right or wrong replies with `auto`, if there are enough replies, and otherwise by the
    validation loss. `num_cut` is the number of references that
    are longer than a reply may be, because a reply that is cut off is never right. `reads_calls` says whether tool
    calls can be read from replies in the chat template of the base.
    """
    names, why = _choose_names(items, settings)
    left_out = {name: reason for name in names if (reason := lacks_data(name, items, settings.number_pattern))}
    if "tool_calls" in names and not reads_calls:
        left_out["tool_calls"] = "calls in the form of this chat template are not read from replies"
    replied = [_configure(find_metric(name), settings) for name in names if name not in left_out]
    is_cut = num_cut > _MAX_CUT * len(items)
    may_decide = [metric for metric in replied if settings.metrics != "auto" or metric.is_right_or_wrong]
    decisive = _choose_decisive([] if is_cut else may_decide, len(items), questions)
    always = [metric for metric in METRICS if metric.items != "replies"]
    sentences = [_explain_choice(replied, why, items)] if replied else []
    sentences += [f"{name} is left out, because {reason}." for name, reason in left_out.items()]
    if replied and is_cut:
        sentences.append(
            f"{num_cut} of {len(items)} references are longer than evaluation.max_new_tokens "
            f"({settings.max_new_tokens}), so replies are cut off. Fix: raise it."
        )
    sentences.append(f"The verdict is by {_TITLES.get(decisive.name, decisive.label)}.")
    return ChosenMetrics([*always, *replied], decisive.name, " ".join(sentences))


def _choose_names(items: Sequence[ReplyItem], settings: EvaluationSection) -> tuple[Sequence[str], str]:
    """Return the names of metrics of replies, and the reason for the choice."""
    if settings.metrics != "auto":
        return settings.metrics, "evaluation.metrics lists them"
    kinds = find_kinds(items, settings.number_pattern)
    names = dict.fromkeys(name for kind in kinds for name in REPLY_KINDS[kind].metrics)
    reasons = [REPLY_KINDS[kind].reason for kind in kinds]
    if settings.number_pattern is not None:
        reasons = ["evaluation.number_pattern is set"]
    return list(names), " and ".join(reasons)


def _configure(metric: Metric, settings: EvaluationSection) -> Metric:
    """Return a metric with its settings."""
    if metric.name == "numeric_match" and settings.number_pattern is not None:
        return replace(metric, score=partial(score_numbers, pattern=settings.number_pattern))
    return metric


def _choose_decisive(candidates: Sequence[Metric], items: int, questions: Sequence[Question]) -> Metric:
    """Return the metric that decides the verdict."""
    if questions:
        return find_metric("facts")
    return candidates[0] if candidates and items >= MIN_ITEMS else find_metric(DEFAULT_DECISIVE)


def _explain_choice(replied: Sequence[Metric], why: str, items: Sequence[ReplyItem]) -> str:
    """Return the sentence that says which metrics were chosen, and why."""
    labels = [metric.label + _describe_tokenizer(metric, items) for metric in replied]
    return f"Metrics of {len(items)} replies: {', '.join(labels)}, because {why}."


def _describe_tokenizer(metric: Metric, items: Sequence[ReplyItem]) -> str:
    """Return the tokenizer of BLEU in parentheses; nothing for other metrics."""
    return f" (tokenizer {choose_tokenizer(find_references(items))})" if metric.name == "bleu" else ""
