"""The metrics that compare an adapted model with its base, in one table.

Comparison text, JSON, receipt, model card and report iterate over `METRICS`. Receipts contain only the metrics of their
version (`sharing/figures.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lora_chat.evaluation.intervals import (
    Reduce,
    Statistics,
)

# Callers import the types of a measurement from this module, too.
from lora_chat.evaluation.measurement import Measurement as Measurement
from lora_chat.evaluation.measurement import Reply as Reply
from lora_chat.evaluation.measurement import ReplyItem as ReplyItem
from lora_chat.evaluation.metric import Metric as Metric
from lora_chat.evaluation.metric import MetricFigures as MetricFigures
from lora_chat.evaluation.metric import Score as Score
from lora_chat.evaluation.metric import Word as Word
from lora_chat.evaluation.metric import count_each as count_each
from lora_chat.evaluation.metric import reduce_to_mean as reduce_to_mean
from lora_chat.evaluation.metric import reduce_to_perplexity as reduce_to_perplexity
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
