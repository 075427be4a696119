"""The comparison of a receipt, repeated on the sender's dialogues or on others."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from lora_chat.config.recipe import EvaluationSection
from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.general.compare import digest_items
from lora_chat.evaluation.general.selection import GeneralSet
from lora_chat.evaluation.intervals import Interval
from lora_chat.evaluation.metrics import MetricFigures, find_metric, format_changes
from lora_chat.pipeline.general_items import MIN_WEIGHTS, choose_general_set
from lora_chat.pipeline.prepare import PreparedEvaluation
from lora_chat.sharing.evaluation_receipt import EvaluationReceipt, FigureReceipt
from lora_chat.sharing.figures import ComparisonReceipt
from lora_chat.sharing.parcel import ParcelCheck
from lora_chat.sharing.receipt import Receipt
from lora_chat.system.hashing import digest_file

logger = logging.getLogger(__name__)

_LOSS_TOLERANCE = 0.02
"""Relative tolerance of a repeated loss, because another processor adds in another order."""
_BORDERLINE_P_VALUES = 0.01, 0.15
"""p-values between which rounding on another processor may change the word of a verdict."""


def choose_settings(receipt: Receipt) -> EvaluationSection:
    """Return the settings with which the sender compared, as far as the receipt has them; nothing is printed.

    A receipt without a verdict has losses and answers only.
    """
    if receipt.evaluation is None:
        return EvaluationSection(samples=0, replies=0)
    stated = receipt.recipe.get("evaluation")
    known = {key: value for key, value in stated.items() if key in _REPEATED} if isinstance(stated, Mapping) else {}
    replies = receipt.evaluation.replies
    if replies is None:
        counts = [f.items for name, f in receipt.evaluation.figures.items() if find_metric(name).items == "replies"]
        replies = max(counts, default=0)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    try:
        return EvaluationSection.model_validate({**values, "replies": replies})
    except ValidationError:  # settings of a later version
        return EvaluationSection(replies=replies)


_REPEATED = ("samples", "max_new_tokens", "generation", "metrics", "number_pattern")
"""Settings that decide which replies are generated and how they are measured."""


def choose_stated_general(receipt: Receipt, prepared: PreparedEvaluation) -> GeneralSet | None:
    """Return the general items that the sender asked; None if they are not of the set that lora_chat ships."""
    stated = receipt.evaluation.general if receipt.evaluation else None
    if stated is None or not stated.shipped:
        return None
    general = choose_general_set("auto", (), prepared.tokenizer, weights=MIN_WEIGHTS)
    if general is None:
        return None
    general = general.take(stated.items)
    return general if digest_items(general.items) == stated.set_digest else None


def leave_out_questions(prepared: PreparedEvaluation, receipt: Receipt, data: Path) -> PreparedEvaluation:
    """Return the evaluation without questions that the sender did not ask, which would decide another verdict."""
    stated = receipt.evaluation
    if stated is None or "facts" in stated.figures or not _is_same_file(data, stated.digest):
        return prepared
    if prepared.questions:
        logger.info("The questions are not asked, because the comparison of the receipt has none.")
    return replace(prepared, questions=())


def _is_same_file(data: Path, digest: str | None) -> bool:
    """Return whether a file has the digest of the receipt."""
    return data.is_file() and digest_file(data) == digest


def check_comparison(report: ComparisonReport, receipt: Receipt, data: Path) -> ParcelCheck:
    """Check a repeated comparison against the stated one; passed is None if it was on other dialogues."""
    digest = digest_file(data) if data.is_file() else None
    dialogues = f"{report.validation_dialogues} dialogues of {data}"
    evaluation = receipt.evaluation
    if evaluation is not None and digest == evaluation.digest:
        return _check_verdict(report, evaluation, dialogues)
    if evaluation is None and receipt.comparison is not None and digest == receipt.data.held_out:
        return _check_losses(report, receipt.comparison, dialogues)
    # On other dialogues only an improvement can be seen.
    return ParcelCheck(
        "comparison",
        f"{report.verdict.text} Measured on {dialogues}, which are not the receipt's",
        True if report.verdict.word == "better" else None,
    )


def _check_losses(report: ComparisonReport, stated: ComparisonReceipt, dialogues: str) -> ParcelCheck:
    """Check the losses of a receipt without a verdict."""
    loss, stated_loss = report.figures["validation_loss"], stated.validation_loss
    return ParcelCheck(
        "comparison",
        f"{format_changes(report.figures)} on {dialogues}; the receipt states {stated_loss.base:.3f} -> "
        f"{stated_loss.adapted:.3f} on the same dialogues",
        _is_close(loss["base"], stated_loss.base) and _is_close(loss["adapted"], stated_loss.adapted),
        ("comparison",),
    )


def _check_verdict(report: ComparisonReport, stated: EvaluationReceipt, dialogues: str) -> ParcelCheck:
    """Check figures and verdict of a receipt on the sender's own dialogues."""
    different = [
        name
        for name, figure in stated.figures.items()
        if (pair := report.figures.get(name)) is not None and not _is_repeated(name, pair, figure)
    ]
    missing = sorted(set(stated.figures) - set(report.figures))
    verdict = stated.make_verdict()
    if stated.general is None or report.general is None:
        missing += ["general"] if stated.general else []
    elif not _is_within(report.general.difference, stated.general.difference_interval):
        different.append("general")
    summary = f"{report.verdict.text} Measured on {dialogues}; the receipt states: {verdict.text}"
    if different:
        summary += f" These differ: {', '.join(different)}."
    if missing:
        summary += f" Not repeated: {', '.join(missing)}."
    if stated.verdict.metric in missing:
        return ParcelCheck("comparison", summary, False if different else None)
    same_word = report.verdict.word == verdict.word or _is_borderline(report.figures.get(stated.verdict.metric or ""))
    if verdict.word == "withheld" and report.overlap is None:
        same_word = True  # without the digests of the run, the dialogues cannot be looked for again
    if "facts" in missing:
        summary += " Its questions are given with --questions FILE."
    # Recital needs the training data, and the kept step the training.
    is_complete = not missing and stated.recital is None
    confirmed = ("comparison", "evaluation") if is_complete else ("comparison",)
    return ParcelCheck("comparison", summary, same_word and not different, confirmed)


def _is_repeated(name: str, pair: MetricFigures, stated: FigureReceipt) -> bool:
    """Return whether both values of a metric were measured again.

    A loss agrees up to rounding, and perplexity follows from it. A generated reply may differ after a rounding, so that
    other metrics agree if each value lies within the other's interval.
    """
    if name == "perplexity":
        return True
    if name == "validation_loss":
        return _is_close(pair["base"], stated.base) and _is_close(pair["adapted"], stated.adapted)
    intervals = (pair["base"], stated.base_interval), (pair["adapted"], stated.adapted_interval)
    return all(_is_within(value, interval) for value, interval in intervals)


def _is_within(value: float, interval: Interval) -> bool:
    """Return whether a value lies within an interval, up to rounding."""
    return interval[0] - 1e-9 <= value <= interval[1] + 1e-9


def _is_close(value: float, stated: float) -> bool:
    """Return whether two losses are equal up to the rounding of another processor."""
    return abs(value - stated) <= _LOSS_TOLERANCE * max(abs(stated), 0.5)


def _is_borderline(pair: MetricFigures | None) -> bool:
    """Return whether a p-value is near the limit."""
    low, high = _BORDERLINE_P_VALUES
    return pair is not None and low < pair.get("p_value", 0.0) < high
