"""A fine-tuning run from top to bottom: `fine_tune` names the steps, the functions below it do them."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.audit.format import audit_summary, format_refusal
from lora_chat.audit.report import AuditReport
from lora_chat.config.lora_variants import find_initialization
from lora_chat.config.plan import Plan, make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import DataError
from lora_chat.evaluation.loss_plot import write_loss_plot
from lora_chat.models.adapter import attach_adapter, continue_adapter, count_parameters, count_trainable_parameters
from lora_chat.models.adapter_files import save_adapter
from lora_chat.models.base_model import load_base_model, load_meta_model
from lora_chat.models.causality import check_causality
from lora_chat.models.model_errors import explain_model_errors
from lora_chat.models.text_layers import describe_left_out, find_text_layers
from lora_chat.models.token_rows import merge_token_rows
from lora_chat.pipeline.audit_run import audit_run
from lora_chat.pipeline.check_metrics import check_listed_metrics
from lora_chat.pipeline.compare import check_longest_dialogue_fits, compare_run
from lora_chat.pipeline.compare_generations import add_original_base, measure_generations, report_generations
from lora_chat.pipeline.estimate import resolve_plan
from lora_chat.pipeline.general_items import take_planned_items
from lora_chat.pipeline.measure_recital import add_recital
from lora_chat.pipeline.merge_parent import merge_parent
from lora_chat.pipeline.parent import Parent, read_lineage
from lora_chat.pipeline.parent_copy import is_template_accepted, keep_lineage, open_parent
from lora_chat.pipeline.parent_settings import inherit_settings
from lora_chat.pipeline.prepare import PreparedRun, format_plan_summary, prepare_run
from lora_chat.pipeline.report_runs import try_write_report
from lora_chat.pipeline.resume import ResumeRequest, find_resume_point, find_run_to_resume, is_finished, is_foreign_run
from lora_chat.pipeline.run_identity import describe_run
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.pipeline.sft_result import SftResult, make_result, read_finished_result, round_seconds
from lora_chat.pipeline.training_overlap import keep_training_digests
from lora_chat.planning.disk_space import check_disk_space
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.format import format_estimate_summary
from lora_chat.planning.validation import count_step_copies
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
from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
from lora_chat.training.reporters import check_reporters, finished_reporters, start_reporters
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingResult, TrainingRun

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

_STOCK_PATH_IN_FLOAT16 = (
    "The fast path does not run in fp16, because its own LM head divides small gradients before they are scaled. "
    "Training is slower, with the same result."
)


def fine_tune(
    recipe: Recipe, progress: RunProgress, resume: ResumeRequest | None = None, *, accept_template: bool = False
) -> SftResult:
    """Train an adapter by a recipe, compare it with its base, and keep both in a run folder.

    Everything that could waste the run fails before weights load. With `resume`, an interrupted run continues.
    `accept_template` lets the chat template of a stranger's adapter in `adapter.start` run.
    """
    started = time.monotonic()
    hardware = detect_hardware(recipe.base.device)
    earlier = find_run_to_resume(resume, recipe) if resume else None
    parent = open_parent(recipe, earlier)
    if parent:
        recipe = inherit_settings(recipe, parent)
        accept_template = accept_template or is_template_accepted(earlier, parent)
    plan = make_plan(recipe, hardware)
    if earlier:
        plan = _keep_older_defaults(plan, recipe, earlier.read_plan())
    if recipe.training.fast_path is True and not plan.training.fast_path:
        logger.info(_STOCK_PATH_IN_FLOAT16)
    is_received = bool(resume and earlier and is_foreign_run(earlier, resume))
    if resume and earlier and is_finished(earlier, resume):
        return _repeat_result(earlier, adopt=is_received)
    check_reporters(plan.output.reporters)
    run = earlier or create_run_folder(recipe, plan, start_run_signature)
    with lock_run_folder(run.path):
        with nullcontext() if earlier else _deleted_on_error(run):
            prepared, audit = _prepare_and_audit(plan, progress, parent, accept_template=accept_template)
            plan = plan.model_copy(update={"precision": prepared.precision})
            progress.enter_stage("planning")
            planning_started = time.monotonic()
            plan, estimate = resolve_plan(plan, prepared, earlier, planning_started - started)
            planning_seconds = time.monotonic() - planning_started
            planned_items = estimate.general_items if estimate else None
            prepared = replace(prepared, general=take_planned_items(prepared.general, planned_items, earlier))
            check_listed_metrics(prepared, plan.evaluation)
            original = prepared
            if parent and parent.is_merged:
                progress.enter_stage("merging the parent into its base")
                plan, prepared = merge_parent(run, plan, prepared, parent)
        progress.run = run
        identity = describe_run(plan, prepared, read_library_versions(), parent)
        checkpoint = find_resume_point(run, identity, resume) if resume and earlier else None

        if is_received:
            # An adapter in the folder becomes this user's only when training writes it again.
            start_run_signature(run)
        if earlier:
            _clean_interrupted_run(run)
        with _signed_files(run, PREPARED_FILES, announce=earlier is not None):
            write_run_description(run, recipe, plan)
            parent = keep_lineage(run, parent, original.identity)
            prepared.write(run, redacted=bool(plan.audit.redacted))
            prepared = keep_training_digests(run, prepared)
            run.write_json(run.audit, audit.as_dict())
            run.write_json(run.identity, identity)
        if estimate:
            run.write_json(run.estimate, estimate.as_dict())
        logger.info(_format_summary(plan, prepared, run, estimate, audit, parent))

        start_reporters(plan.output.reporters, run.path)
        model, trainable_parameters = _load_model(plan, prepared, run, progress, parent)
        load_seconds = time.monotonic() - started
        progress.enter_stage("measuring the longest held-out dialogue")
        base_config, base_name = model.get_base_model().config, prepared.base.name
        with explain_model_errors(base_config, base_name, "Evaluation"):
            check_longest_dialogue_fits(model, prepared.validation, prepared.test)

        progress.enter_stage("training")
        policy = CheckpointPolicy(run.checkpoints, plan.checkpoint, identity, checkpoint)
        with explain_model_errors(base_config, base_name, "Training"), finished_reporters(plan.output.reporters):
            training = train_sft(_make_training_run(model, plan, prepared, run, policy))
        plan = _record_trained_plan(recipe, plan, training, run)
        adapter_bytes = _save_adapter_or_stop(model, plan, prepared, run, training, progress)

        generations = None
        merge_token_rows(model)
        with progress.explain_out_of_memory(), explain_model_errors(base_config, base_name, "Evaluation"):
            report = compare_run(model, prepared, plan.evaluation, run)
            report = add_recital(report, model, prepared, plan, audit, run, training.steps)
            if parent:
                measured = measure_generations(model, prepared, plan.evaluation, report, parent)
                del model
                if parent.is_merged:
                    measured = add_original_base(measured, original.base, plan.precision)
                generations = report_generations(measured, run)
        card = format_run_card(
            plan,
            prepared.identity,
            training.steps,
            report.figures,
            read_lineage(run),
            generations,
            loss_on_prompts=prepared.statistics.total.loss_on_prompts > 0,
            verdict=report.verdict,
            recital=report.recital,
        )
        run.write_text(run.adapter / "README.md", card)
        seconds = round_seconds(load_seconds, training, time.monotonic() - started)
        result = make_result(run, training, trainable_parameters, adapter_bytes, seconds, report)
        if generations:
            result = result.model_copy(update={"generations": generations.figures})
        if estimate:
            result = result.with_estimate(estimate, planning_seconds, resumed=checkpoint is not None)
        run.write_json(run.result, result.as_dict())
        try_write_report(run)
        return result


def _keep_older_defaults(plan: Plan, recipe: Recipe, earlier: Plan) -> Plan:
    """Return the plan with the behaviour of the version that made the earlier run, which has no field for it."""
    if "thinking" not in earlier.data.model_fields_set:
        plan = plan.model_copy(update={"data": plan.data.model_copy(update={"thinking": None})})
    if "keep" not in earlier.training.model_fields_set and "keep" not in recipe.training.model_fields_set:
        plan = plan.model_copy(update={"training": plan.training.model_copy(update={"keep": "last"})})
    return plan


def _repeat_result(run: RunFolder, *, adopt: bool) -> SftResult:
    """Return the result of a finished run; sign the run as this user's if it was received and adopted."""
    result = read_finished_result(run)
    if adopt:
        try_adopt_run(run)
    return result


@contextmanager
def _deleted_on_error(run: RunFolder) -> Iterator[None]:
    """Delete a new run if its preparation fails."""
    try:
        yield
    except BaseException:
        delete_run(run)
        raise


@contextmanager
def _signed_files(run: RunFolder, names: Sequence[str], *, announce: bool = True) -> Iterator[None]:
    """Announce writes of a run's files and sign the files after they are written; an error leaves them announced.

    A new run needs no announcement, because its first signature announces all files.
    """
    if announce:
        announce_writes(run, names)
    yield
    sign_written_files(run, names)


def _prepare_and_audit(
    plan: Plan, progress: RunProgress, parent: Parent | None, *, accept_template: bool
) -> tuple[PreparedRun, AuditReport]:
    """Read, encode and audit the data, without dropped dialogues. Raise DataError if the audit refuses it."""
    progress.enter_stage("reading the dialogues")
    prepared = prepare_run(plan, parent, accept_template=accept_template)
    progress.enter_stage("auditing the dialogues")
    prepared, audit = audit_run(prepared, plan)
    if audit.is_refused:
        raise DataError(format_refusal(audit, plan.audit))
    return prepared, audit


def _clean_interrupted_run(run: RunFolder) -> None:
    """Prepare the folder of an interrupted run for new writes."""
    run.restrict_permissions()
    run.delete_partial_files()
    # The result goes before anything is announced, because only an unfinished run may have unsigned files.
    run.delete(run.result)


def _format_summary(
    plan: Plan,
    prepared: PreparedRun,
    run: RunFolder,
    estimate: RunEstimate | None,
    audit: AuditReport,
    parent: Parent | None,
) -> str:
    """Format plan, estimate and audit, as printed before weights load."""
    estimate_lines = format_estimate_summary(estimate) if estimate else []
    return "\n".join([format_plan_summary(plan, prepared, run, parent), *estimate_lines, *audit_summary(audit)])


def _load_model(
    plan: Plan, prepared: PreparedRun, run: RunFolder, progress: RunProgress, parent: Parent | None
) -> "tuple[PeftModel, int]":
    """Check the disk space, load the base and attach a new adapter or the parent's.

    Return the number of trained parameters, too.
    """
    progress.enter_stage("checking the disk space")
    skeleton = load_meta_model(prepared.base)
    left_out = describe_left_out(find_text_layers(skeleton))
    trainable_parameters = count_trainable_parameters(skeleton, prepared.adapter, prepared.new_ids)
    copies = count_step_copies(plan, len(prepared.train.rows), len(prepared.validation.rows))
    check_disk_space(run.path, trainable_parameters, plan.checkpoint.keep, (run.parent, run.merged_base), copies)
    progress.enter_stage("loading the base")
    base_model = load_base_model(prepared.base, plan.precision)
    known_ids = [token for token in prepared.train.rows[0].input_ids if token not in prepared.new_ids]
    with explain_model_errors(base_model.config, prepared.base.name, "Reading a dialogue"):
        check_causality(base_model, known_ids, prepared.base.name)
    if parent is not None and not parent.is_merged:
        model = continue_adapter(base_model, parent.stored, plan.adapter.dropout, plan.training.seed)
    else:
        unquantized = plan.precision.model_copy(update={"mode": "none", "device": "cpu"})
        needs_original = find_initialization(plan.adapter.initialization).fits_residual
        load_original = (lambda: load_base_model(prepared.base, unquantized)) if needs_original else None
        model = attach_adapter(base_model, prepared.adapter, plan.training.seed, load_original, prepared.new_ids)
    counts = count_parameters(model)
    if left_out:
        logger.info(left_out)
    logger.info(
        f"LoRA: {counts.trainable_parameters:,} trainable of {counts.all_parameters:,} parameters ({counts.share:.2%})"
    )
    return model, counts.trainable_parameters


def _make_training_run(
    model: "PeftModel", plan: Plan, prepared: PreparedRun, run: RunFolder, policy: CheckpointPolicy
) -> TrainingRun:
    """Return the input of the training."""
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
        reporters=plan.output.reporters,
        checkpoint_policy=policy,
        locate_dialogues=lambda rows: [(display_path(Path(path)), line) for path, line in prepared.train.locate(rows)],
        adjustable_settings=plan.open_settings,
    )


def _record_trained_plan(recipe: Recipe, plan: Plan, training: TrainingResult, run: RunFolder) -> Plan:
    """Return the plan that was trained, and write it into the run if training chose a smaller micro-batch."""
    if training.plan == plan.training:
        return plan
    plan = plan.model_copy(update={"training": training.plan})
    with _signed_files(run, PREPARED_FILES):
        write_run_description(run, recipe, plan)
    return plan


def _save_adapter_or_stop(
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
    progress.stage = "saving the adapter"
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
    progress.stage = "comparing base and adapted"
    if training.signal_number:
        raise progress.stopped(training.signal_number)
    logger.info(f"Adapter saved: {display_path(run.adapter)} ({format_bytes(adapter_bytes)})")
    return adapter_bytes
