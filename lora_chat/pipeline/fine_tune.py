"""The whole run, in order."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_chat.audit.format import refusal, short_audit
from lora_chat.audit.report import AuditReport
from lora_chat.config.plan import Plan, make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import DataError, IntegrityError
from lora_chat.evaluation.format import result_text
from lora_chat.evaluation.loss_plot import write_loss_plot
from lora_chat.models.adapter import attach_adapter, count_trainable, report_adapter
from lora_chat.models.adapter_files import save_adapter
from lora_chat.models.base_model import load_base_model, load_skeleton
from lora_chat.pipeline.audit_data import audit_sets
from lora_chat.pipeline.compare import compare_run, headline, try_longest
from lora_chat.pipeline.estimate import decide
from lora_chat.pipeline.estimate_history import make_record, record_text
from lora_chat.pipeline.prepare import PreparedRun, prepare, summary
from lora_chat.pipeline.resume import ResumeRequest, find_resume_point, find_run, is_finished, is_received
from lora_chat.pipeline.run_identity import describe_run
from lora_chat.pipeline.run_status import Progress
from lora_chat.planning.disk_space import check_space
from lora_chat.planning.format import short_forecast
from lora_chat.runs.lock import locked
from lora_chat.runs.origin import (
    ADAPTER,
    PREPARED,
    adopt_if_possible,
    announce,
    begin_origin,
    sign_if_possible,
    sign_written,
)
from lora_chat.runs.run_folder import RunFolder, create_run_folder, describe, forget, library_versions
from lora_chat.sharing.model_card import write_card
from lora_chat.system.console import megabytes, say, shown
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.memory_peak import peak_held_bytes, peak_memory_bytes
from lora_chat.training.callbacks.checkpoint import Keeping
from lora_chat.training.sft import train_sft


def fine_tune(recipe: Recipe, progress: Progress, resume: ResumeRequest | None = None) -> dict[str, Any]:
    """Recipe -> run folder with adapter and comparison. Whatever would waste the run fails before weights load.

    With `resume` a run that was cut short is continued.
    """
    started = time.monotonic()
    plan = make_plan(recipe, detect_hardware())
    earlier = find_run(resume, recipe, say) if resume else None
    received = False
    if resume and earlier:
        received = is_received(earlier, resume)
        if is_finished(earlier, resume, say):
            found = _finished_result(earlier)
            if received:
                adopt_if_possible(earlier)
            return found
    run = earlier or create_run_folder(recipe, plan, begin_origin)
    with locked(run.path):
        try:
            prepared, audit = _prepare(plan, progress)
            progress.enter("planning")
            before = time.monotonic()
            plan, forecast = decide(plan, prepared, earlier, before - started)
            deciding = time.monotonic() - before
        except BaseException:
            if not earlier:
                forget(run)
            raise
        progress.run = run
        identity = describe_run(plan, prepared, library_versions())
        point = find_resume_point(run, identity, resume, say) if resume and earlier else None
        if received:
            begin_origin(run)  # an adapter that it holds becomes this user's only when it is written anew
        if earlier:
            run.close()
            run.sweep()
            run.delete(run.result)  # first: only an unfinished run may be as it was not signed
            announce(run, PREPARED)
        describe(run, recipe, plan)
        prepared.write(run, redacted=bool(plan.audit.redacted))
        run.write_json(run.audit, asdict(audit))
        run.write_json(run.identity, identity)
        sign_written(run, PREPARED)
        if forecast:
            run.write_json(run.forecast, forecast.as_dict())
        planned = short_forecast(forecast) if forecast else []
        say("\n".join([summary(plan, prepared, run), *planned, *short_audit(audit)]))
        keeping = Keeping(run.checkpoints, plan.checkpoint, identity, point)
        result = _train_and_compare(recipe, plan, prepared, run, keeping, progress, started)
        if forecast:
            seconds = result["seconds"]
            took = seconds["total"] - deciding  # trying out the machine is no part of what was planned
            result["forecast"] = make_record(
                forecast, peak_held_bytes(), took, seconds["train"], resumed=point is not None
            )
        run.write_json(run.result, result)
        return result


def _finished_result(run: RunFolder) -> dict[str, Any]:
    """What a finished run found, for the place where it is now. Raises IntegrityError if its file does not hold it."""
    result = {**run.read_result(), "run": str(run.path)}
    try:
        result_text(result)
        if result.get("forecast"):
            record_text(result["forecast"])
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise IntegrityError(f"{run.result} is damaged: it does not hold what `sft` writes.") from error
    return result


def _prepare(plan: Plan, progress: Progress) -> tuple[PreparedRun, AuditReport]:
    progress.enter("reading the dialogues")
    prepared = prepare(plan, say)
    progress.enter("auditing the dialogues")
    audit = audit_sets(
        prepared.train,
        prepared.validation,
        prepared.tokenizer,
        plan.audit,
        say,
        questions=prepared.questions,
        template=plan.data.template,
    )
    if audit.refuses:
        raise DataError(refusal(audit, plan.audit))
    return prepared, audit


def _train_and_compare(
    recipe: Recipe,
    plan: Plan,
    prepared: PreparedRun,
    run: RunFolder,
    keeping: Keeping,
    progress: Progress,
    started: float,
) -> dict[str, Any]:
    progress.enter("looking for space")
    check_space(run.path, count_trainable(load_skeleton(prepared.base), plan.adapter), plan.checkpoint.keep)
    progress.enter("loading the base")
    base = load_base_model(prepared.base, plan.precision)
    model = attach_adapter(base, plan.adapter, plan.training.seed)
    adapter = report_adapter(model)
    loaded = time.monotonic()
    say(
        f"LoRA: {adapter.trainable_parameters:,} trainable of {adapter.all_parameters:,} parameters "
        f"({adapter.share:.2%})"
    )

    progress.enter("trying the longest validation dialogue")
    try_longest(model, prepared.validation)
    progress.enter("training")
    training = train_sft(
        model,
        prepared.tokenizer,
        prepared.train.rows,
        prepared.validation.rows,
        plan.training,
        bfloat16=plan.precision.dtype == "bfloat16",
        each_epoch=plan.evaluation.each_epoch,
        metrics=run.metrics,
        tensorboard=run.tensorboard if plan.output.tensorboard else None,
        keeping=keeping,
        locate=lambda rows: [(shown(Path(path)), line) for path, line in prepared.train.locate(rows)],
        may_change=plan.open_settings,
    )
    if training.plan != plan.training:
        plan = plan.model_copy(update={"training": training.plan})
        announce(run, PREPARED)
        describe(run, recipe, plan)
        sign_written(run, PREPARED)
    if training.signal_number and not training.steps:
        raise progress.stopped(training.signal_number)
    progress.stage = "saving the adapter"
    template = str(prepared.tokenizer.chat_template)
    card = write_card(plan, prepared.identity, training.steps, None)
    announce(run, ADAPTER)
    size = save_adapter(model, run.adapter, prepared.identity, template, card)
    sign_if_possible(run)
    if training.signal_number and training.steps < training.planned_steps:
        write_loss_plot(run.metrics, run.plot, None)
        raise progress.stopped_in_training(training.steps, training.planned_steps, training.signal_number)
    progress.saved = True
    progress.stage = "comparing base and adapted"
    if training.signal_number:
        raise progress.stopped(training.signal_number)
    say(f"Adapter saved: {shown(run.adapter)} ({megabytes(size)})")
    report = compare_run(model, prepared, plan.evaluation, run)
    run.write_text(run.adapter / "README.md", write_card(plan, prepared.identity, training.steps, headline(report)))
    return {
        "run": str(run.path),
        "seconds": {
            "load": round(loaded - started, 2),
            "train": round(training.seconds, 2),
            "total": round(training.seconds_before + time.monotonic() - started, 2),
        },
        "steps": training.steps,
        "planned_steps": training.planned_steps,
        "supervised_tokens": training.supervised_tokens,
        "peak_memory_bytes": peak_memory_bytes(),
        "adapter_bytes": size,
        "trainable_parameters": adapter.trainable_parameters,
        **headline(report),
    }
