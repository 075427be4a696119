"""A fine-tuning run from top to bottom: `fine_tune` names the steps, the functions below it do them."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from lora_chat.audit.format import audit_summary, format_refusal
from lora_chat.audit.report import AuditReport
from lora_chat.config.plan import Plan, make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import RefusedDataError
from lora_chat.models.model_errors import explain_model_errors
from lora_chat.models.sharded_forwards import first_process_computes
from lora_chat.models.token_rows import merge_token_rows
from lora_chat.pipeline.audit_run import audit_run
from lora_chat.pipeline.check_metrics import check_listed_metrics
from lora_chat.pipeline.compare import check_longest_dialogue_fits, compare_run
from lora_chat.pipeline.compare_generations import add_original_base, measure_generations, report_generations
from lora_chat.pipeline.estimate import resolve_plan
from lora_chat.pipeline.final_figures import list_final_figures, list_final_texts
from lora_chat.pipeline.follow_run import SharedRun, share_run
from lora_chat.pipeline.general_items import take_planned_items
from lora_chat.pipeline.held_out_digests import digest_held_out
from lora_chat.pipeline.load_adapted import load_adapted_model
from lora_chat.pipeline.measure_recital import add_recital
from lora_chat.pipeline.merge_parent import merge_parent
from lora_chat.pipeline.model_reference import keep_reference
from lora_chat.pipeline.parent import Parent, read_lineage
from lora_chat.pipeline.parent_copy import is_template_accepted, keep_lineage, open_parent
from lora_chat.pipeline.parent_settings import inherit_settings
from lora_chat.pipeline.prepare import PreparedRun, format_plan_summary, prepare_run
from lora_chat.pipeline.report_runs import try_write_report
from lora_chat.pipeline.resume import ResumeRequest, find_resume_point, find_run_to_resume, is_finished, is_foreign_run
from lora_chat.pipeline.run_identity import describe_run
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.pipeline.saved_training import make_training_run, record_trained_plan, save_adapter_or_stop, signed_files
from lora_chat.pipeline.sft_result import SftResult, make_result, read_finished_result, round_seconds
from lora_chat.pipeline.shard_choice import settle_sharding
from lora_chat.pipeline.training_overlap import keep_training_digests
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.format import format_estimate_summary
from lora_chat.processes.group import current_group
from lora_chat.runs.create_run import create_run_folder, delete_run, read_library_versions, write_run_description
from lora_chat.runs.lock import lock_run_folder
from lora_chat.runs.origin import (
    PREPARED_FILES,
    start_run_signature,
    try_adopt_run,
)
from lora_chat.runs.run_folder import RunFolder
from lora_chat.sharing.run_card import format_run_card
from lora_chat.system.hardware import detect_hardware
from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
from lora_chat.training.reporter_session import finished_reporters, start_reporters
from lora_chat.training.reporters import check_reporters
from lora_chat.training.sft import train_sft

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
        share_run(None)
        return _repeat_result(earlier, adopt=is_received)
    check_reporters(plan.output.reporters)
    run = earlier or create_run_folder(recipe, plan, start_run_signature)
    with lock_run_folder(run.path), finished_reporters(plan.output.reporters) as reporters:
        with nullcontext() if earlier else _deleted_on_error(run):
            prepared, audit = _prepare_and_audit(plan, progress, parent, accept_template=accept_template)
            plan = plan.model_copy(update={"precision": prepared.precision})
            progress.enter_stage("planning")
            planning_started = time.monotonic()
            plan = settle_sharding(plan, current_group().size)
            plan, estimate = resolve_plan(plan, prepared, earlier, planning_started - started)
            planning_seconds = time.monotonic() - planning_started
            planned_items = estimate.general_items if estimate else None
            prepared = replace(prepared, general=take_planned_items(prepared.general, planned_items, earlier))
            check_listed_metrics(prepared, plan.evaluation)
            original, original_plan = prepared, plan
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
        with signed_files(run, PREPARED_FILES, announce=earlier is not None):
            write_run_description(run, recipe, plan)
            parent = keep_lineage(run, parent, original.identity)
            prepared.write(run, redacted=bool(plan.audit.redacted))
            prepared = keep_training_digests(run, prepared)
            run.write_json(run.audit, audit.as_dict())
            run.write_json(run.identity, identity)
        if estimate:
            run.write_json(run.estimate, estimate.as_dict())
        logger.info(_format_summary(plan, prepared, run, estimate, audit, parent))

        where = str(checkpoint.folder.resolve()) if checkpoint else None
        share_run(
            SharedRun(
                run=str(run.path.resolve()),
                plan=original_plan,
                identity=identity,
                held_out=digest_held_out(prepared) if current_group().size > 1 else {},
                planned_items=len(prepared.general.items) if prepared.general else None,
                checkpoint=where,
            )
        )
        current_group().wait()  # until the others have read the data and copied the measurements
        start_reporters(reporters.names, run.path, continues=earlier is not None and not is_received)
        model, trainable_parameters = load_adapted_model(plan, prepared, run, progress, parent)
        load_seconds = time.monotonic() - started
        progress.enter_stage("measuring the longest held-out dialogue")
        base_config, base_name = model.get_base_model().config, prepared.base.name
        with explain_model_errors(base_config, base_name, "Evaluation"):
            check_longest_dialogue_fits(model, prepared.validation, prepared.test)

        progress.enter_stage("training")
        policy = CheckpointPolicy(run.checkpoints, plan.checkpoint, identity, checkpoint)
        with explain_model_errors(base_config, base_name, "Training"):
            training = train_sft(make_training_run(model, plan, prepared, run, policy, progress, reporters))
        plan = record_trained_plan(recipe, plan, training, run)
        adapter_bytes = save_adapter_or_stop(model, plan, prepared, run, training, progress)
        current_group().wait()  # because an error in another process's measurement must not interrupt the writing

        generations = None
        merge_token_rows(model)
        with progress.explain_out_of_memory(), explain_model_errors(base_config, base_name, "Evaluation"):
            with first_process_computes(model):
                report = compare_run(model, prepared, plan.evaluation, run)
                report = add_recital(report, model, prepared, plan, audit, run, training.steps)
                reporters.log_final(list_final_figures(report), list_final_texts(report))
                keep_reference(run, model, prepared, plan.precision)
                measured = measure_generations(model, prepared, plan.evaluation, report, parent) if parent else None
            if parent and measured:
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
            evaluated_set=report.evaluated_set,
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


def _prepare_and_audit(
    plan: Plan, progress: RunProgress, parent: Parent | None, *, accept_template: bool
) -> tuple[PreparedRun, AuditReport]:
    """Read, encode and audit the data, without dropped dialogues. Raise DataError if the audit refuses it."""
    progress.enter_stage("reading the dialogues")
    prepared = prepare_run(plan, parent, accept_template=accept_template)
    progress.enter_stage("auditing the dialogues")
    prepared, audit = audit_run(prepared, plan)
    if audit.is_refused:
        raise RefusedDataError(format_refusal(audit, plan.audit))
    return prepared, audit


def _clean_interrupted_run(run: RunFolder) -> None:
    """Prepare the folder of an interrupted run for new writes."""
    run.restrict_permissions()
    run.delete_partial_files()
    # The result goes before anything is announced, because only an unfinished run may have unsigned files.
    run.delete(run.result)
    run.delete(run.reference)  # it belongs to the earlier weights


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
    if estimate is None and (processes := current_group().size) > 1:
        estimate_lines.append(f"Processes {processes}, each trains a share of the dialogues of every step")
    return "\n".join([format_plan_summary(plan, prepared, run, parent), *estimate_lines, *audit_summary(audit)])
