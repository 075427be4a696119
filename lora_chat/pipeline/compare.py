"""Base against adapted, shown and kept."""

import logging
from contextlib import nullcontext
from typing import Any

from lora_chat.data.dataset import DialogueSet
from lora_chat.errors import OutOfMemoryError
from lora_chat.evaluation.comparison import ComparisonReport, compare_with_base
from lora_chat.evaluation.format import format_comparison
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.evaluation.loss_plot import write_loss_plot
from lora_chat.pipeline.prepare import PreparedEvaluation
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.memory_limit import is_out_of_memory, limited_memory

logger = logging.getLogger(__name__)


def compare_run(model: Any, prepared: PreparedEvaluation, settings: Any, run: RunFolder) -> ComparisonReport:
    """Measure base against adapted and write what was found into the run."""
    report = compare_models(model, prepared, settings)
    run.write_json(run.comparison, report.as_dict())
    if run.metrics.exists():
        write_loss_plot(run.metrics, run.plot, report.validation_loss)
    return report


def compare_models(model: Any, prepared: PreparedEvaluation, settings: Any) -> ComparisonReport:
    """Measure base against adapted and show it."""
    report = compare_with_base(
        model,
        prepared.tokenizer,
        prepared.stop_ids,
        prepared.validation,
        prepared.questions,
        prepared.identity.system,
        settings,
    )
    logger.info("\n" + format_comparison(report) + "\n")
    return report


def headline_figures(report: ComparisonReport) -> dict[str, Any]:
    """The figures of a comparison that `--json` gives."""
    report_dict = report.as_dict()
    result: dict[str, Any] = {key: report_dict[key] for key in ("validation_loss", "perplexity")}
    if report.facts:
        result["facts"] = {**report_dict["facts"], "questions": report.questions}
    return result


def check_longest_dialogue_fits(model: Any, validation: DialogueSet) -> None:
    """Measure the longest validation dialogue once, before anything is trained; raises OutOfMemoryError."""
    rows = validation.rows
    longest = int(rows.lengths.argmax())
    try:
        with limited_memory() if model.device.type == "cpu" else nullcontext():
            evaluate_loss(model, [rows[longest]])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Out of memory: the longest validation dialogue, {int(rows.lengths[longest]):,} tokens, cannot be "
            f"measured "
            "(tried here, before training).\nLeave long ones out (--set data.max_length=N --set data.over_long=drop), "
            "or take a smaller base, or --set quantization.mode=4bit."
        ) from error
