"""The input of a training, and the files that are written at its end."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.plan import Plan
from lora_chat.config.recipe import Recipe
from lora_chat.evaluation.loss_plot import write_loss_plot
from lora_chat.models.adapter_files import save_adapter
from lora_chat.pipeline.prepare import PreparedRun
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.runs.create_run import write_run_description
from lora_chat.runs.origin import (
    ADAPTER_FILES,
    PREPARED_FILES,
    announce_writes,
    sign_written_files,
    try_sign_run,
)
from lora_chat.runs.run_folder import RunFolder
from lora_chat.sharing.run_card import format_run_card
from lora_chat.system.console import display_path, format_bytes
from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
from lora_chat.training.reporter_session import ReporterSession
from lora_chat.training.training_run import TrainingResult, TrainingRun

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


@contextmanager
def signed_files(run: RunFolder, names: Sequence[str], *, announce: bool = True) -> Iterator[None]:
    """Announce writes of a run's files and sign the files after they are written; an error leaves them announced.

    A new run needs no announcement, because its first signature announces all files.
    """
    if announce:
        announce_writes(run, names)
    yield
    sign_written_files(run, names)


def make_training_run(
    model: "PeftModel",
    plan: Plan,
    prepared: PreparedRun,
    run: RunFolder,
    policy: CheckpointPolicy,
    progress: RunProgress,
    reporters: ReporterSession | None = None,
) -> TrainingRun:
    """Return the input of the training; without `reporters` no service receives its metrics."""
    return TrainingRun(
        model=model,
        tokenizer=prepared.tokenizer,
        train_rows=prepared.train.rows,
        validation_rows=prepared.validation.rows,
        plan=plan.training,
        metrics_path=run.metrics,
        bfloat16=plan.precision.dtype == "bfloat16",
        float16=plan.precision.dtype == "float16",
        has_frozen_start=plan.adapter.has_frozen_start,
        evaluate_each_epoch=plan.evaluation.each_epoch is True,
        evaluate_every_steps=plan.evaluation.every_steps,
        reporters=reporters or ReporterSession(),
        checkpoint_policy=policy,
        locate_dialogues=lambda rows: [(display_path(Path(path)), line) for path, line in prepared.train.locate(rows)],
        adjustable_settings=plan.open_settings,
        view=progress.observer,
    )


def record_trained_plan(recipe: Recipe, plan: Plan, training: TrainingResult, run: RunFolder) -> Plan:
    """Return the plan that was trained, and write it into the run if training chose a smaller micro-batch."""
    if training.plan == plan.training:
        return plan
    plan = plan.model_copy(update={"training": training.plan})
    with signed_files(run, PREPARED_FILES):
        write_run_description(run, recipe, plan)
    return plan


def save_adapter_or_stop(
    model: "PeftModel",
    plan: Plan,
    prepared: PreparedRun,
    run: RunFolder,
    training: TrainingResult,
    progress: RunProgress,
) -> int:
    """Save the adapter and return its bytes. Raise StoppedError if a signal stopped the training."""
    if training.signal_number and not training.steps:
        raise progress.stopped(training.signal_number)
    progress.show_stage("saving the adapter")
    template = str(prepared.tokenizer.chat_template)
    loss_on_prompts = prepared.statistics.total.loss_on_prompts > 0
    card = format_run_card(plan, prepared.identity, training.steps, None, loss_on_prompts=loss_on_prompts)
    announce_writes(run, ADAPTER_FILES)
    adapter_bytes = save_adapter(model, run.adapter, prepared.identity, template, card, prepared.tokenizer)
    try_sign_run(run)
    if training.signal_number and not training.is_complete:
        write_loss_plot(run.metrics, run.plot, None)
        raise progress.make_training_stop_error(training.steps, training.planned_steps, training.signal_number)
    logger.info(training.kept_step.describe(training.steps))
    progress.adapter_saved = True
    progress.show_stage("comparing base and adapted")
    if training.signal_number:
        raise progress.stopped(training.signal_number)
    progress.check_observer()
    logger.info(f"Adapter saved: {display_path(run.adapter)} ({format_bytes(adapter_bytes)})")
    return adapter_bytes
