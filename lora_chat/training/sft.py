"""Supervised fine-tuning: train the adapter of a model on encoded dialogues with TRL's SFTTrainer."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_chat.errors import OutOfMemoryError, explain_write_errors
from lora_chat.models.quantization.gpu_weight_cache import cached_forwards
from lora_chat.processes.group import current_group
from lora_chat.runs.checkpoints import list_checkpoint_steps
from lora_chat.runs.metrics_log import MetricsLog, truncate_metrics
from lora_chat.system.atomic_write import private_umask
from lora_chat.system.gpu_memory import release_unused_memory
from lora_chat.system.malloc import keep_freed_memory, trim_memory
from lora_chat.system.memory_limit import is_out_of_memory, limited_memory
from lora_chat.training.adapter_dtype import cast_adapter, restored_model
from lora_chat.training.base_agreement import check_same_base
from lora_chat.training.cached_weights import cached_weights, release_cached_weights
from lora_chat.training.callbacks.agreement import StepAgreement
from lora_chat.training.callbacks.checkpoint import CheckpointCallback
from lora_chat.training.callbacks.frozen_start import FrozenStart
from lora_chat.training.callbacks.gradient_checkpointing import PartialGradientCheckpointing
from lora_chat.training.callbacks.learning_rate import ResumeLearningRate
from lora_chat.training.callbacks.memory_check import MemoryCheckCallback
from lora_chat.training.callbacks.metrics import MetricsCallback
from lora_chat.training.callbacks.nonfinite_guard import NonFiniteGuard
from lora_chat.training.callbacks.step_schedule import MeasurementSchedule
from lora_chat.training.callbacks.validation import ValidationCallback
from lora_chat.training.candidate_plans import (
    candidate_plans,
    changed_settings,
    format_nothing_fits,
    format_smaller_plan,
    format_suggested_plan,
)
from lora_chat.training.checkpoint_content import check_checkpoint_content, explain_resume_errors
from lora_chat.training.fast_path.agreed_parts import find_common_fast_path
from lora_chat.training.fast_path.check_packing import add_trained_tokens
from lora_chat.training.fast_path.check_windows import PackedLengths
from lora_chat.training.fast_path.select import FastPath
from lora_chat.training.kept_step import KeptStep
from lora_chat.training.loss_scale import LossScale
from lora_chat.training.measure_validation import measure_rows
from lora_chat.training.measured_steps import MeasuredSteps
from lora_chat.training.progress_bar import ProgressView, open_progress_view
from lora_chat.training.row_scores import RowScores
from lora_chat.training.sft_config import make_sft_config
from lora_chat.training.step_collator import make_packed_collator, make_padded_collator
from lora_chat.training.step_randomness import ONE_BY_ONE_NOTE, StepRandomness, draws_other_numbers
from lora_chat.training.stock_path import find_stock_path
from lora_chat.training.stop_request import StopRequest, TrainingNotStarted, catch_stop_signals
from lora_chat.training.training_run import TrainingResult, TrainingRun, make_dataset, measure_lengths
from lora_chat.training.triton_head import use_working_head

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel

    from lora_chat.data.row_lengths import Numbers
    from lora_chat.training.trainer import PackedSFTTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedTraining:
    """The parts of a training that all candidate plans share."""

    fast_path: FastPath
    randomness: StepRandomness
    train_dataset: "Dataset"
    validation_lengths: Sequence[int]
    """Length of each validation row, in tokens; empty if they are not measured during training."""
    measured_steps: MeasuredSteps
    lengths: "Numbers"
    """Length of each training row, in tokens, (rows,)."""
    earlier_metrics: MetricsLog
    view: ProgressView
    stop_request: StopRequest


def train_sft(run: TrainingRun) -> TrainingResult:
    """Train the adapter in place; TRL casts and patches the model.

    If the largest micro-batch does not fit in memory, plans with smaller ones are tried. A plan that fits is trained
    if it only changes `run.adjustable_settings`, and otherwise suggested in the error.
    Raises OutOfMemoryError, NonFiniteError, DataError, DiskFullError, DiskError.
    """
    view = run.view or open_progress_view()
    with (
        private_umask(),  # several libraries write files here: checkpoints, TensorBoard events
        restored_model(run),
        closing(view),
        catch_stop_signals() as stop_request,
        _explain_out_of_memory(run.model),
        cached_weights(run) as run,
    ):
        prepared = _prepare_training(run, view, stop_request)
        longest = int(prepared.lengths.max())
        packed = prepared.fast_path.packed_collator is not None
        for plan in candidate_plans(run.plan, packed=packed, longest=longest):
            allowed = changed_settings(run.plan, plan).keys() <= set(run.adjustable_settings)
            if allowed and plan != run.plan:
                logger.info(format_smaller_plan(run.plan, plan, longest))
            if run.plan.cached_layers and not plan.cached_layers:
                release_cached_weights(run)
            attempt = run.with_plan(plan)
            trainer = _make_trainer(attempt, prepared)
            memory_check = MemoryCheckCallback(trainer, run.train_rows, prepared.lengths, plan, only_check=not allowed)
            started = time.monotonic()
            with _ready_to_train(attempt, prepared, trainer, memory_check):
                checkpoint = run.resume_checkpoint
                trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
            seconds = time.monotonic() - started
            if memory_check.fits and not allowed:
                raise OutOfMemoryError(format_suggested_plan(run.plan, plan, longest))
            if memory_check.fits:
                return _make_result(attempt, prepared, trainer, seconds)
            del trainer, memory_check
            release_unused_memory()
        raise OutOfMemoryError(format_nothing_fits(longest))


def _prepare_training(run: TrainingRun, view: ProgressView, stop_request: StopRequest) -> PreparedTraining:
    """Check the checkpoint to resume, open the files of the run and select the fast path."""
    checkpoint, policy = run.resume_checkpoint, run.checkpoint_policy
    if policy:
        with explain_write_errors(policy.folder, "the folder of checkpoints"):
            policy.folder.mkdir(mode=0o700, exist_ok=True)
    if checkpoint:
        check_checkpoint_content(checkpoint, run.model, has_scaler=run.float16)
    earlier_metrics = truncate_metrics(run.metrics_path, checkpoint.step if checkpoint else 0)
    if run.on_cpu:
        keep_freed_memory()
    measured_steps = MeasuredSteps(run.metrics_path.parent, run.plan, len(run.validation_rows))
    step_rows = [int(row["step"]) for row in earlier_metrics.rows if "validation_loss" in row]
    measured_steps.restore(checkpoint.step if checkpoint else 0, step_rows)
    lengths = measure_lengths(run.train_rows)
    validation_lengths = measure_lengths(run.validation_rows).tolist() if run.measures_in_training else []
    longest = run.train_rows[int(lengths.argmax())]
    check_same_base(run.model, longest.input_ids, current_group())
    fast_path = FastPath()
    if run.plan.fast_path:
        # Validation rows are packed, too.
        row_lengths = PackedLengths.from_plan(np.append(lengths, np.array(validation_lengths, lengths.dtype)), run.plan)
        sample = add_trained_tokens(run.model, run.train_rows[0].input_ids)
        fast_path = find_common_fast_path(run.model, sample, longest.input_ids, row_lengths, current_group())
    # The result of a sample may depend on rounding, so all processes take the answer of any of them.
    one_by_one = bool(current_group().largest(draws_other_numbers(run.model, run.train_rows[0].input_ids)))
    notes = [*fast_path.notes, ONE_BY_ONE_NOTE if one_by_one else ""]
    if fast_path.packed_collator is None or fast_path.head is None:
        notes.append(use_working_head(run.model.device))
    if run.plan.label_smoothing:
        notes.append("The training loss includes label smoothing; validation losses are the plain cross entropy.")
    for note in filter(None, notes):
        logger.info(note)
    return PreparedTraining(
        fast_path=fast_path,
        randomness=StepRandomness(run.model, run.plan.seed, run.plan.neftune_alpha, one_by_one=one_by_one),
        train_dataset=make_dataset(run.train_rows),
        validation_lengths=validation_lengths,
        measured_steps=measured_steps,
        lengths=lengths,
        earlier_metrics=earlier_metrics,
        view=view,
        stop_request=stop_request,
    )


def _make_trainer(run: TrainingRun, prepared: PreparedTraining) -> "PackedSFTTrainer":
    """Create the trainer for one plan; its callbacks are added later because they need it."""
    from transformers import PrinterCallback

    from lora_chat.training.trainer import PackedSFTTrainer

    fast_path = prepared.fast_path
    packed = fast_path.packed_collator
    if packed and prepared.randomness.is_used:
        packed = replace(packed, share_prefix=False)  # because each dialogue has its own random numbers
    trainer = PackedSFTTrainer(
        model=run.model,
        args=make_sft_config(run),
        data_collator=make_packed_collator(packed, run.plan) if packed else None,
        train_dataset=prepared.train_dataset,
        processing_class=run.tokenizer,
        plan=run.plan,
        randomness=prepared.randomness,
        lm_head=fast_path.head,
    )
    if packed is None:
        trainer.data_collator = make_padded_collator(trainer.data_collator, run.plan)
    trainer.remove_callback(PrinterCallback)
    trainer.supervised_tokens = prepared.earlier_metrics.supervised_tokens
    run.reporters.guard(trainer)
    if packed is None or fast_path.head is None:
        trainer.stock_path = find_stock_path(run.model, run.train_rows[0].input_ids).agree(current_group())
        for note in trainer.stock_path.notes:
            logger.info(note)
    return trainer


@contextmanager
def _ready_to_train(
    run: TrainingRun, prepared: PreparedTraining, trainer: "PackedSFTTrainer", memory_check: MemoryCheckCallback
) -> Iterator[None]:
    """Add the callbacks, put the fused layers into the model and explain the errors of a training."""
    policy, stop_request = run.checkpoint_policy, prepared.stop_request
    schedule = MeasurementSchedule(
        each_epoch=run.evaluate_each_epoch and run.measures_in_training,
        every_steps=run.evaluate_every_steps if run.measures_in_training else None,
    )
    agreement = StepAgreement(trainer, current_group(), stop_request)
    checkpoints = CheckpointCallback(policy, run.metrics_path, stop_request, schedule, agreement) if policy else None
    layers = run.plan.gradient_checkpointing
    scaler = trainer.accelerator.scaler
    loss_scale = LossScale(scaler, prepared.earlier_metrics.rows) if scaler else None
    frozen_start = FrozenStart(run.model) if run.has_frozen_start else None
    for callback in (
        frozen_start,  # before the callbacks that save or measure
        PartialGradientCheckpointing(layers) if layers and layers is not True else None,
        ResumeLearningRate(lambda: trainer.group_settings),
        memory_check,
        agreement,
        checkpoints,
        NonFiniteGuard(trainer, run.locate_dialogues, checkpoints, loss_scale),
        _make_validation_callback(run, prepared, trainer, schedule),
        MetricsCallback(trainer, run.metrics_path, prepared.earlier_metrics, prepared.view, stop_request, loss_scale),
    ):
        if callback is not None:
            trainer.add_callback(callback)
    cast_adapter(run.model, torch.float32)
    if run.on_cpu:
        trim_memory()  # because the checks of the fast path fragmented the heap
    try:
        with (
            cached_forwards(run.model),
            frozen_start.without_gradient() if frozen_start else nullcontext(),
            prepared.randomness.used_in_model(),
            prepared.fast_path.use_fused_layers(run.model),
            checkpoints.explain_checkpoint_errors() if checkpoints else nullcontext(),
            suppress(TrainingNotStarted),
            explain_resume_errors(run.resume_checkpoint, trainer),
        ):
            yield
    finally:
        # Undo the autocast around forward, because evaluation must measure the model as it is loaded later.
        trainer.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)


def _make_validation_callback(
    run: TrainingRun, prepared: PreparedTraining, trainer: "PackedSFTTrainer", schedule: MeasurementSchedule
) -> ValidationCallback:
    """Return the callback that measures the validation set in micro-batches of the size of training."""
    plan, policy = run.plan, run.checkpoint_policy
    by_tokens = plan.micro_batch_tokens if prepared.fast_path.packed_collator is not None else None

    def measure(before_batch: Callable[[], None]) -> RowScores:
        return measure_rows(
            trainer,
            run.validation_rows,
            prepared.validation_lengths,
            max_tokens=by_tokens or plan.micro_batch_size * int(prepared.lengths.max()),
            max_rows=len(run.validation_rows) if by_tokens else plan.micro_batch_size,
            before_batch=before_batch,
        )

    return ValidationCallback(
        trainer,
        schedule,
        measure,
        prepared.measured_steps,
        prepared.earlier_metrics,
        prepared.stop_request,
        lambda: list_checkpoint_steps(policy.folder) if policy else [],
    )


def _keep_step(run: TrainingRun, prepared: PreparedTraining, trainer: "PackedSFTTrainer") -> tuple[KeptStep, bool]:
    """Put the weights of the kept step into the model if training is complete. Return the step, and whether it is."""
    step, planned_steps = trainer.state.global_step, trainer.state.max_steps
    if step < planned_steps and not prepared.measured_steps.should_stop:
        return KeptStep(step, "training was stopped after it"), False
    return prepared.measured_steps.choose(run.model, step, planned_steps), True


def _make_result(
    run: TrainingRun, prepared: PreparedTraining, trainer: "PackedSFTTrainer", seconds: float
) -> TrainingResult:
    """Choose the step that is kept, and collect the counts and times of a finished training."""
    prepared.stop_request.agree(current_group())
    kept_step, is_complete = _keep_step(run, prepared, trainer)
    return TrainingResult(
        steps=trainer.state.global_step,
        planned_steps=trainer.state.max_steps,
        seconds=prepared.earlier_metrics.seconds + seconds,
        seconds_before_resume=prepared.earlier_metrics.seconds,
        supervised_tokens=trainer.supervised_tokens,
        signal_number=prepared.stop_request.signal_number,
        kept_step=kept_step,
        is_complete=is_complete,
        plan=run.plan,
    )


@contextmanager
def _explain_out_of_memory(model: "PeftModel") -> Iterator[None]:
    """Raise OutOfMemoryError with a message; on a CPU, limit allocations to the free memory."""
    try:
        with limited_memory(current_group().rank.local_size) if model.device.type == "cpu" else nullcontext():
            yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "Out of memory in training: the largest micro-batch fitted before, so another program has taken memory.\n"
            "Fix: end other programs, then continue with --resume."
        ) from error
