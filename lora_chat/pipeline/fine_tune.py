"""The whole run, in order."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_chat.audit.format import audit_summary, format_refusal
from lora_chat.audit.report import AuditReport
from lora_chat.config.plan import Plan, make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import DataError, IntegrityError
from lora_chat.evaluation.format import format_result
from lora_chat.evaluation.loss_plot import write_loss_plot
from lora_chat.models.adapter import attach_adapter, count_parameters, count_trainable_parameters
from lora_chat.models.adapter_files import save_adapter
from lora_chat.models.base_model import load_base_model, load_meta_model
from lora_chat.pipeline.audit_data import audit_sets
from lora_chat.pipeline.compare import check_longest_dialogue_fits, compare_run, headline_figures
from lora_chat.pipeline.estimate import resolve_plan
from lora_chat.pipeline.estimate_history import format_record, make_estimate_record
from lora_chat.pipeline.prepare import PreparedRun, format_plan_summary, prepare_run
from lora_chat.pipeline.resume import ResumeRequest, find_resume_point, find_run_to_resume, is_finished, is_foreign_run
from lora_chat.pipeline.run_identity import describe_run
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.planning.disk_space import check_disk_space
from lora_chat.planning.format import format_estimate_summary
from lora_chat.runs.create_run import create_run_folder, delete_run, read_library_versions, write_run_description
from lora_chat.runs.lock import lock_run_folder
from lora_chat.runs.origin import (
    ADAPTER_FILES,
    PREPARED_FILES,
    announce_writes,
    sign_written_files,
    start_run_signature,
    try_adopt_run,
    try_sign_run,
)
from lora_chat.runs.run_folder import RunFolder
from lora_chat.sharing.model_card import format_run_card
from lora_chat.system.console import display_path, format_bytes
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.memory_usage import peak_memory_bytes, peak_reserved_bytes
from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingRun

logger = logging.getLogger(__name__)


def fine_tune(recipe: Recipe, progress: RunProgress, resume: ResumeRequest | None = None) -> dict[str, Any]:
    """Recipe -> run folder with adapter and comparison. Whatever would waste the run fails before weights load.

    With `resume` a run that was cut short is continued.
    """
    started = time.monotonic()
    plan = make_plan(recipe, detect_hardware())
    earlier = find_run_to_resume(resume, recipe) if resume else None
    received = False
    if resume and earlier:
        received = is_foreign_run(earlier, resume)
        if is_finished(earlier, resume):
            finished = _read_finished_result(earlier)
            if received:
                try_adopt_run(earlier)
            return finished
    run = earlier or create_run_folder(recipe, plan, start_run_signature)
    with lock_run_folder(run.path):
        try:
            prepared, audit = _prepare_and_audit(plan, progress)
            progress.enter_stage("planning")
            planning_started = time.monotonic()
            plan, estimate = resolve_plan(plan, prepared, earlier, planning_started - started)
            planning_seconds = time.monotonic() - planning_started
        except BaseException:
            if not earlier:
                delete_run(run)
            raise
        progress.run = run
        identity = describe_run(plan, prepared, read_library_versions())
        point = find_resume_point(run, identity, resume) if resume and earlier else None
        if received:
            start_run_signature(run)  # an adapter that it holds becomes this user's only when it is written anew
        if earlier:
            run.restrict_permissions()
            run.delete_partial_files()
            run.delete(run.result)  # first: only an unfinished run may be as it was not signed
            announce_writes(run, PREPARED_FILES)
        write_run_description(run, recipe, plan)
        prepared.write(run, redacted=bool(plan.audit.redacted))
        run.write_json(run.audit, asdict(audit))
        run.write_json(run.identity, identity)
        sign_written_files(run, PREPARED_FILES)
        if estimate:
            run.write_json(run.estimate, estimate.as_dict())
        planned = format_estimate_summary(estimate) if estimate else []
        logger.info("\n".join([format_plan_summary(plan, prepared, run), *planned, *audit_summary(audit)]))
        checkpoint_policy = CheckpointPolicy(run.checkpoints, plan.checkpoint, identity, point)
        result = _train_and_compare(recipe, plan, prepared, run, checkpoint_policy, progress, started)
        if estimate:
            seconds = result["seconds"]
            run_seconds = seconds["total"] - planning_seconds  # trying out the machine is no part of what was planned
            result["forecast"] = make_estimate_record(
                estimate, peak_reserved_bytes(), run_seconds, seconds["train"], resumed=point is not None
            )
        run.write_json(run.result, result)
        return result


def _read_finished_result(run: RunFolder) -> dict[str, Any]:
    """What a finished run found, for the place where it is now. Raises IntegrityError if its file does not hold it."""
    result = {**run.read_result(), "run": str(run.path)}
    try:
        format_result(result)
        if result.get("forecast"):
            format_record(result["forecast"])
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise IntegrityError(f"{run.result} is damaged: it does not hold what `sft` writes.") from error
    return result


def _prepare_and_audit(plan: Plan, progress: RunProgress) -> tuple[PreparedRun, AuditReport]:
    progress.enter_stage("reading the dialogues")
    prepared = prepare_run(plan)
    progress.enter_stage("auditing the dialogues")
    audit = audit_sets(
        prepared.train,
        prepared.validation,
        prepared.tokenizer,
        plan.audit,
        questions=prepared.questions,
        template=plan.data.template,
    )
    if audit.is_refused:
        raise DataError(format_refusal(audit, plan.audit))
    return prepared, audit


def _train_and_compare(
    recipe: Recipe,
    plan: Plan,
    prepared: PreparedRun,
    run: RunFolder,
    checkpoint_policy: CheckpointPolicy,
    progress: RunProgress,
    started: float,
) -> dict[str, Any]:
    progress.enter_stage("looking for space")
    check_disk_space(
        run.path, count_trainable_parameters(load_meta_model(prepared.base), plan.adapter), plan.checkpoint.keep
    )
    progress.enter_stage("loading the base")
    base = load_base_model(prepared.base, plan.precision)
    model = attach_adapter(base, plan.adapter, plan.training.seed)
    adapter = count_parameters(model)
    loaded = time.monotonic()
    logger.info(
        f"LoRA: {adapter.trainable_parameters:,} trainable of {adapter.all_parameters:,} parameters "
        f"({adapter.share:.2%})"
    )

    progress.enter_stage("trying the longest validation dialogue")
    check_longest_dialogue_fits(model, prepared.validation)
    progress.enter_stage("training")
    training = train_sft(
        TrainingRun(
            model=model,
            tokenizer=prepared.tokenizer,
            train_rows=prepared.train.rows,
            validation_rows=prepared.validation.rows,
            plan=plan.training,
            metrics_path=run.metrics,
            bfloat16=plan.precision.dtype == "bfloat16",
            evaluate_each_epoch=plan.evaluation.each_epoch,
            tensorboard_folder=run.tensorboard if plan.output.tensorboard else None,
            checkpoint_policy=checkpoint_policy,
            locate_dialogues=lambda rows: [
                (display_path(Path(path)), line) for path, line in prepared.train.locate(rows)
            ],
            adjustable_settings=plan.open_settings,
        )
    )
    if training.plan != plan.training:
        plan = plan.model_copy(update={"training": training.plan})
        announce_writes(run, PREPARED_FILES)
        write_run_description(run, recipe, plan)
        sign_written_files(run, PREPARED_FILES)
    if training.signal_number and not training.steps:
        raise progress.stopped(training.signal_number)
    progress.stage = "saving the adapter"
    template = str(prepared.tokenizer.chat_template)
    card = format_run_card(plan, prepared.identity, training.steps, None)
    announce_writes(run, ADAPTER_FILES)
    size = save_adapter(model, run.adapter, prepared.identity, template, card)
    try_sign_run(run)
    if training.signal_number and training.steps < training.planned_steps:
        write_loss_plot(run.metrics, run.plot, None)
        raise progress.make_training_stop_error(training.steps, training.planned_steps, training.signal_number)
    progress.adapter_saved = True
    progress.stage = "comparing base and adapted"
    if training.signal_number:
        raise progress.stopped(training.signal_number)
    logger.info(f"Adapter saved: {display_path(run.adapter)} ({format_bytes(size)})")
    report = compare_run(model, prepared, plan.evaluation, run)
    run.write_text(
        run.adapter / "README.md", format_run_card(plan, prepared.identity, training.steps, headline_figures(report))
    )
    return {
        "run": str(run.path),
        "seconds": {
            "load": round(loaded - started, 2),
            "train": round(training.seconds, 2),
            "total": round(training.seconds_before_resume + time.monotonic() - started, 2),
        },
        "steps": training.steps,
        "planned_steps": training.planned_steps,
        "supervised_tokens": training.supervised_tokens,
        "peak_memory_bytes": peak_memory_bytes(),
        "adapter_bytes": size,
        "trainable_parameters": adapter.trainable_parameters,
        **headline_figures(report),
    }
