"""The comparison of base and adapted model, shown and written into a run."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.config.recipe import EvaluationSection
from lora_chat.data.dataset import DialogueSet
from lora_chat.errors import OutOfMemoryError
from lora_chat.evaluation.comparison import compare_with_base, help_to_compare
from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.format import format_comparison
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.evaluation.loss_plot import write_loss_plot
from lora_chat.evaluation.recital import RecitalReport, format_recital
from lora_chat.evaluation.task import make_task
from lora_chat.pipeline.prepare import PreparedEvaluation
from lora_chat.processes.group import current_group
from lora_chat.runs.run_folder import RunFolder
from lora_chat.runs.validation_log import read_validation_log
from lora_chat.system.gpu_memory import release_gpu_memory
from lora_chat.system.memory_limit import is_out_of_memory, limited_memory

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


def compare_run(
    model: "PeftModel",
    prepared: PreparedEvaluation,
    settings: EvaluationSection,
    run: RunFolder,
    recital: RecitalReport | None = None,
) -> ComparisonReport:
    """Compare base and adapted model and write the report and the loss plot into the run.

    `recital` is what the end of training measured, which a later comparison keeps.
    """
    release_gpu_memory()  # optimizer and trainer are no longer used after training
    used_twice = prepared.compared_name == "validation" and _was_chosen_by_validation(run)
    report = replace(compare_models(model, prepared, settings, used_twice=used_twice), recital=recital)
    if recital:
        logger.info(f"{format_recital(recital)} (measured at the end of training)\n")
    run.write_json(run.comparison, report.as_dict())
    if run.metrics.exists():
        write_loss_plot(run.metrics, run.plot, report.figures.get("validation_loss"))
    return report


def _was_chosen_by_validation(run: RunFolder) -> bool:
    """Return whether the validation set of a run chose its step among several, or when its training ended."""
    log = read_validation_log(run.validations)
    return log.chose_step or (bool(log.rows) and run.read_plan().training.early_stopping is not None)


def compare_models(
    model: "PeftModel", prepared: PreparedEvaluation, settings: EvaluationSection, *, used_twice: bool = False
) -> ComparisonReport:
    """Compare base and adapted model and show the report.

    `used_twice` says whether the compared set also chose the checkpoint.
    """
    report = compare_with_base(
        model,
        prepared.tokenizer,
        prepared.stop_ids,
        prepared.compared,
        prepared.questions,
        prepared.identity.system,
        settings,
        prepared.compared_name,
        used_twice=used_twice,
        overlap=prepared.overlap,
        general=prepared.general,
    )
    logger.info("\n" + format_comparison(report) + "\n")
    return report


def help_to_compare_models(model: "PeftModel", prepared: PreparedEvaluation, settings: EvaluationSection) -> None:
    """Measure a share of the comparison that the first process makes."""
    release_gpu_memory()
    system, compared = prepared.identity.system, prepared.compared
    task = make_task(prepared.tokenizer, prepared.stop_ids, compared, prepared.questions, system, settings)
    help_to_compare(model, task, prepared.general)


def check_longest_dialogue_fits(model: "PeftModel", *sets: DialogueSet) -> None:
    """Measure the longest held-out dialogue once before training. Raise OutOfMemoryError if it does not fit."""
    filled = [dialogues.rows for dialogues in sets if len(dialogues.rows)]
    if not filled:
        return
    rows = max(filled, key=lambda rows: int(rows.lengths.max()))
    longest = int(rows.lengths.argmax())
    try:
        with limited_memory(current_group().rank.local_size) if model.device.type == "cpu" else nullcontext():
            evaluate_loss(model, [rows[longest]])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Out of memory: the longest held-out dialogue, {int(rows.lengths[longest]):,} tokens, cannot be "
            "measured (checked before training).\nFix: drop long dialogues (--set data.max_length=N "
            "--set data.over_long=drop), choose a smaller base, or --set quantization.mode=4bit."
        ) from error
