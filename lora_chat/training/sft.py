"""Encoded dialogues + adapted model -> TRL's SFTTrainer -> report. The only door to TRL."""

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_chat.config.lora_variants import EXTRA_VECTORS
from lora_chat.config.plan import TrainingPlan
from lora_chat.errors import OutOfMemoryError, explain_write_errors
from lora_chat.system.atomic_write import private_umask
from lora_chat.system.malloc import keep_freed_memory, release_freed_memory, trim_memory
from lora_chat.system.memory_limit import is_out_of_memory, limited_memory
from lora_chat.training.progress_bar import open_progress_view
from lora_chat.training.stop_request import catch_stop_signals

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase
    from trl import SFTConfig

    from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
    from lora_chat.training.callbacks.nonfinite_guard import DialogueLocator
    from lora_chat.training.fast_path.select import FastPath
    from lora_chat.training.trainer import PackedSFTTrainer

logger = logging.getLogger(__name__)


class EncodedRow(Protocol):
    """An encoded dialogue: ids and labels, both (length,)."""

    @property
    def input_ids(self) -> list[int]: ...
    @property
    def labels(self) -> list[int]: ...


@dataclass(frozen=True)
class TrainingResult:
    """What training did."""

    steps: int
    planned_steps: int
    seconds: float
    seconds_before_resume: float
    """Of `seconds`, what had passed when a resumed run was cut short."""
    supervised_tokens: int
    signal_number: int
    """The signal that asked to stop, or 0."""
    plan: TrainingPlan
    """As it was trained: in smaller pieces, perhaps, than was planned."""


def train_sft(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    plan: TrainingPlan,
    *,
    bfloat16: bool,
    each_epoch: bool,
    metrics: Path,
    tensorboard: Path | None = None,
    checkpoint_policy: "CheckpointPolicy | None" = None,
    locate: "DialogueLocator" = lambda _: (),
    adjustable_settings: Collection[str] = (),
) -> TrainingResult:
    """Train the adapter in place on rows that carry their labels; TRL casts and patches the model.

    One JSON object a step is appended to `metrics`. With `checkpoint_policy`, checkpoints are written, and perhaps
    one is continued. `locate` names the dialogues of a step that went wrong. Where the largest micro-batch does not
    fit and settings in `adjustable_settings` make it fit, that is said and done, once.
    Raises OutOfMemoryError, NonFiniteError, DataError, DiskFullError, DiskError.
    """
    from lora_chat.training.callbacks.memory_check import RetryWithSmallerPlan, update_identity

    options: dict[str, Any] = {
        "bfloat16": bfloat16,
        "each_epoch": each_epoch,
        "metrics": metrics,
        "tensorboard": tensorboard,
        "locate": locate,
    }
    try:
        with private_umask():  # checkpoints, TensorBoard's events: several libraries write here
            return _train_once(
                model,
                tokenizer,
                train,
                validation,
                plan,
                **options,
                checkpoint_policy=checkpoint_policy,
                adjustable_settings=adjustable_settings,
            )
    except RetryWithSmallerPlan as down:
        smaller_plan, note = down.plan, str(down)
    logger.info(note)
    if checkpoint_policy:
        checkpoint_policy = replace(
            checkpoint_policy, identity=update_identity(smaller_plan, checkpoint_policy.identity)
        )
    with private_umask():
        return _train_once(
            model,
            tokenizer,
            train,
            validation,
            smaller_plan,
            **options,
            checkpoint_policy=checkpoint_policy,
            adjustable_settings=(),
        )


def _train_once(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    plan: TrainingPlan,
    *,
    bfloat16: bool,
    each_epoch: bool,
    metrics: Path,
    tensorboard: Path | None,
    checkpoint_policy: "CheckpointPolicy | None",
    locate: "DialogueLocator",
    adjustable_settings: Collection[str],
) -> TrainingResult:
    import torch

    from lora_chat.runs.metrics_log import truncate_metrics
    from lora_chat.training.callbacks.checkpoint import CheckpointCallback
    from lora_chat.training.callbacks.learning_rate import ResumeLearningRate
    from lora_chat.training.callbacks.memory_check import MemoryCheckCallback, RetryWithSmallerPlan
    from lora_chat.training.callbacks.metrics import MetricsCallback
    from lora_chat.training.callbacks.nonfinite_guard import NonFiniteGuard
    from lora_chat.training.checkpoint_content import check_checkpoint_content, explain_resume_errors
    from lora_chat.training.fast_path.select import find_fast_path
    from lora_chat.training.sft_config import make_sft_config
    from lora_chat.training.trainer import TrainingAlreadyComplete

    on_cpu = model.device.type == "cpu"
    if tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(tensorboard)
    view = open_progress_view()
    trainer = None
    retrying = False
    stock_attention = model.config._attn_implementation
    try:
        with catch_stop_signals() as stop, _explain_out_of_memory(model):
            resume = checkpoint_policy.resume if checkpoint_policy else None
            if checkpoint_policy:
                with explain_write_errors(checkpoint_policy.folder, "the folder of checkpoints"):
                    checkpoint_policy.folder.mkdir(mode=0o700, exist_ok=True)
            if resume:
                check_checkpoint_content(resume, model)
            earlier_metrics = truncate_metrics(metrics, resume.step if resume else 0)
            if on_cpu:
                keep_freed_memory()
            fast_path = find_fast_path(model, train[0].input_ids, plan)
            for note in fast_path.notes:
                logger.info(note)
            metrics_callback = MetricsCallback(metrics, earlier_metrics, view, stop)
            guard = NonFiniteGuard(
                locate,
                lambda: (
                    checkpoint_callback.latest_checkpoint.step
                    if checkpoint_callback and checkpoint_callback.latest_checkpoint
                    else None
                ),
            )
            checkpoint_callback = (
                CheckpointCallback(checkpoint_policy, metrics, lambda: bool(stop.signal_number), guard.check_weights)
                if checkpoint_policy
                else None
            )
            memory_check = MemoryCheckCallback(train, _measure_lengths(train), plan, adjustable_settings)
            config = make_sft_config(
                plan,
                checkpoint_policy.folder if checkpoint_policy else metrics.parent,
                bfloat16=bfloat16,
                on_cpu=on_cpu,
                each_epoch=each_epoch,
                tensorboard=tensorboard is not None,
                one_batch_per_step=fast_path.collator is not None,
            )
            trainer = _make_trainer(
                model, tokenizer, train, validation if each_epoch else None, plan, fast_path, config
            )
            guard.trainer = memory_check.trainer = metrics_callback.trainer = trainer
            for callback in (
                ResumeLearningRate(),
                memory_check,
                guard,
                *([checkpoint_callback] if checkpoint_callback else []),
                metrics_callback,
            ):
                trainer.add_callback(callback)
            _cast_adapter(model, torch.float32)
            if on_cpu:
                trim_memory()  # what the proofs left is cut up otherwise than training needs it
            started = time.monotonic()
            checkpoint_errors = (
                checkpoint_callback.explain_checkpoint_errors() if checkpoint_callback else nullcontext()
            )
            with (
                fast_path.use_fused_layers(model),
                checkpoint_errors,
                suppress(TrainingAlreadyComplete),
                explain_resume_errors(resume, trainer),
            ):
                trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)
            seconds = time.monotonic() - started
    except RetryWithSmallerPlan:
        retrying = True
        raise
    finally:
        view.close()
        if trainer is not None:  # undo the autocast around forward: what is measured is what is loaded later
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if bfloat16 and not retrying:
            _cast_adapter(model, torch.bfloat16)
        if on_cpu:
            release_freed_memory()
        model.set_attn_implementation(stock_attention)
    return TrainingResult(
        steps=trainer.state.global_step,
        planned_steps=trainer.state.max_steps,
        seconds=earlier_metrics.seconds + seconds,
        seconds_before_resume=earlier_metrics.seconds,
        supervised_tokens=int(trainer.supervised_tokens),
        signal_number=stop.signal_number,
        plan=plan,
    )


def _make_trainer(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow] | None,
    plan: TrainingPlan,
    fast_path: "FastPath",
    config: "SFTConfig",
) -> "PackedSFTTrainer":
    from transformers import PrinterCallback

    from lora_chat.training.callbacks.gradient_checkpointing import PartialGradientCheckpointing
    from lora_chat.training.trainer import PackedSFTTrainer

    trainer = PackedSFTTrainer(
        model=model,
        args=config,
        data_collator=fast_path.collator,
        train_dataset=_make_dataset(train),
        eval_dataset=None if validation is None else _make_dataset(validation),
        processing_class=tokenizer,
    )
    trainer.head = fast_path.head
    trainer.remove_callback(PrinterCallback)
    if plan.gradient_checkpointing is not True and plan.gradient_checkpointing:
        trainer.add_callback(PartialGradientCheckpointing(plan.gradient_checkpointing))
    return trainer


@contextmanager
def _explain_out_of_memory(model: "PeftModel") -> Iterator[None]:
    """Raises OutOfMemoryError; on a CPU allocations are limited to what is free."""
    try:
        with limited_memory() if model.device.type == "cpu" else nullcontext():
            yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "Out of memory in training, though its largest micro-batch had fitted: something else took memory since.\n"
            "End other programs, then go on with --resume."
        ) from error


def _measure_lengths(rows: Sequence[EncodedRow]) -> list[int]:
    """Tokens of every row; rows that stay on disk know theirs."""
    return rows.lengths.tolist() if hasattr(rows, "lengths") else [len(row.input_ids) for row in rows]


def _make_dataset(rows: Sequence[EncodedRow]) -> "Dataset":
    """Only ids and labels: any other column of a row could steer TRL. Rows that stay on disk have one already."""
    from datasets import Dataset

    if hasattr(rows, "dataset"):
        return rows.dataset
    return Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})


def _cast_adapter(model: "PeftModel", dtype: "torch.dtype") -> None:
    """TRL casts LoRA on a quantised base to bf16. There Adam's second moment stands still: a step changes it
    by 0.1 % and bf16 has steps of 0.4 %. So it is trained in fp32, and rounded once at the end.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(vector in name for vector in EXTRA_VECTORS):
            parameter.data = parameter.data.to(dtype)
