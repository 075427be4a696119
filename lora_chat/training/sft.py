"""Encoded dialogues + adapted model -> TRL's SFTTrainer -> report. The only door to TRL."""

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_chat.config.plan import TrainingPlan
from lora_chat.errors import MemoryShortError, explain_write_errors
from lora_chat.system.atomic_write import private_modes
from lora_chat.system.malloc import give_memory_back, keep_memory, trim_memory
from lora_chat.system.memory_limit import is_out_of_memory, limited_memory
from lora_chat.training.progress_bar import open_view
from lora_chat.training.stop_request import stop_requests

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase
    from trl import SFTConfig

    from lora_chat.training.callbacks.checkpoint import Keeping
    from lora_chat.training.callbacks.nonfinite_guard import Locate
    from lora_chat.training.fast_path.select import FastPath
    from lora_chat.training.trainer import StepTrainer


class Row(Protocol):
    """An encoded dialogue: ids and labels, both (length,)."""

    @property
    def input_ids(self) -> list[int]: ...
    @property
    def labels(self) -> list[int]: ...


@dataclass(frozen=True)
class TrainingReport:
    """What training did."""

    steps: int
    planned_steps: int
    seconds: float
    seconds_before: float
    """Of `seconds`, what had passed when a resumed run was cut short."""
    supervised_tokens: int
    signal_number: int
    """The signal that asked to stop, or 0."""
    plan: TrainingPlan
    """As it was trained: in smaller pieces, perhaps, than was planned."""


def train_sft(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[Row],
    validation: Sequence[Row],
    plan: TrainingPlan,
    *,
    bfloat16: bool,
    each_epoch: bool,
    metrics: Path,
    tensorboard: Path | None = None,
    keeping: "Keeping | None" = None,
    locate: "Locate" = lambda _: (),
    may_change: Collection[str] = (),
) -> TrainingReport:
    """Train the adapter in place on rows that carry their labels; TRL casts and patches the model.

    One JSON object a step is appended to `metrics`. With `keeping`, checkpoints are written, and perhaps one is
    continued. `locate` names the dialogues of a step that went wrong. Where the largest micro-batch does not fit and
    settings in `may_change` make it fit, that is said and done, once.
    Raises MemoryShortError, NotFiniteError, DataError, SpaceError, DiskError.
    """
    from lora_chat.training.callbacks.memory_check import StepDown, identity_of

    given: dict[str, Any] = {
        "bfloat16": bfloat16,
        "each_epoch": each_epoch,
        "metrics": metrics,
        "tensorboard": tensorboard,
        "locate": locate,
    }
    try:
        with private_modes():  # checkpoints, TensorBoard's events: several libraries write here
            return _train(model, tokenizer, train, validation, plan, **given, keeping=keeping, may_change=may_change)
    except StepDown as down:
        smaller, note = down.plan, str(down)
    view = open_view()
    view.note(note)
    view.close()
    if keeping:
        keeping = replace(keeping, identity=identity_of(smaller, keeping.identity))
    with private_modes():
        return _train(model, tokenizer, train, validation, smaller, **given, keeping=keeping, may_change=())


def _train(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[Row],
    validation: Sequence[Row],
    plan: TrainingPlan,
    *,
    bfloat16: bool,
    each_epoch: bool,
    metrics: Path,
    tensorboard: Path | None,
    keeping: "Keeping | None",
    locate: "Locate",
    may_change: Collection[str],
) -> TrainingReport:
    import torch

    from lora_chat.runs.metrics_log import cut_metrics
    from lora_chat.training.callbacks.checkpoint import Committer
    from lora_chat.training.callbacks.learning_rate import RateOfPlan
    from lora_chat.training.callbacks.memory_check import MemoryTrial, StepDown
    from lora_chat.training.callbacks.metrics import Recorder
    from lora_chat.training.callbacks.nonfinite_guard import StepGuard
    from lora_chat.training.checkpoint_content import check_content, explained_beginning
    from lora_chat.training.fast_path.select import find_fast_path
    from lora_chat.training.sft_config import make_sft_config
    from lora_chat.training.trainer import NothingLeft

    on_cpu = model.device.type == "cpu"
    if tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(tensorboard)
    view = open_view()
    trainer = None
    again = False
    stock_attention = model.config._attn_implementation
    try:
        with stop_requests(view.note) as stop, _out_of_memory(model):
            resume = keeping.resume if keeping else None
            if keeping:
                with explain_write_errors(keeping.folder, "the folder of checkpoints"):
                    keeping.folder.mkdir(mode=0o700, exist_ok=True)
            if resume:
                check_content(resume, model)
            before = cut_metrics(metrics, resume.step if resume else 0)
            if on_cpu:
                keep_memory()
            path = find_fast_path(model, train[0].input_ids, plan)
            for note in path.notes:
                view.note(note)
            recorder = Recorder(metrics, before, view, stop)
            guard = StepGuard(locate, lambda: committer.newest.step if committer and committer.newest else None)
            committer = Committer(keeping, metrics, lambda: bool(stop.number), guard.check_weights) if keeping else None
            trial = MemoryTrial(train, _measure_lengths(train), plan, may_change)
            config = make_sft_config(
                plan,
                keeping.folder if keeping else metrics.parent,
                bfloat16=bfloat16,
                on_cpu=on_cpu,
                each_epoch=each_epoch,
                tensorboard=tensorboard is not None,
                whole_steps=path.collator is not None,
            )
            trainer = _make_trainer(model, tokenizer, train, validation if each_epoch else None, plan, path, config)
            guard.trainer = trial.trainer = recorder.trainer = trainer
            for callback in (RateOfPlan(), trial, guard, *([committer] if committer else []), recorder):
                trainer.add_callback(callback)
            _cast_adapter(model, torch.float32)
            if on_cpu:
                trim_memory()  # what the proofs left is cut up otherwise than training needs it
            started = time.monotonic()
            explained = committer.explained() if committer else nullcontext()
            with path.layers(model), explained, suppress(NothingLeft), explained_beginning(resume, trainer):
                trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)
            seconds = time.monotonic() - started
    except StepDown:
        again = True
        raise
    finally:
        view.close()
        if trainer is not None:  # undo the autocast around forward: what is measured is what is loaded later
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if bfloat16 and not again:
            _cast_adapter(model, torch.bfloat16)
        if on_cpu:
            give_memory_back()
        model.set_attn_implementation(stock_attention)
    return TrainingReport(
        steps=trainer.state.global_step,
        planned_steps=trainer.state.max_steps,
        seconds=before.seconds + seconds,
        seconds_before=before.seconds,
        supervised_tokens=int(trainer.supervised_tokens),
        signal_number=stop.number,
        plan=plan,
    )


def _make_trainer(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[Row],
    validation: Sequence[Row] | None,
    plan: TrainingPlan,
    path: "FastPath",
    config: "SFTConfig",
) -> "StepTrainer":
    from transformers import PrinterCallback

    from lora_chat.training.callbacks.gradient_checkpointing import PartialCheckpointing
    from lora_chat.training.trainer import StepTrainer

    trainer = StepTrainer(
        model=model,
        args=config,
        data_collator=path.collator,
        train_dataset=_make_dataset(train),
        eval_dataset=None if validation is None else _make_dataset(validation),
        processing_class=tokenizer,
    )
    trainer.head = path.head
    trainer.remove_callback(PrinterCallback)
    if plan.gradient_checkpointing is not True and plan.gradient_checkpointing:
        trainer.add_callback(PartialCheckpointing(plan.gradient_checkpointing))
    return trainer


@contextmanager
def _out_of_memory(model: "PeftModel") -> Iterator[None]:
    """Raises MemoryShortError; on a CPU allocations are limited to what is free."""
    try:
        with limited_memory() if model.device.type == "cpu" else nullcontext():
            yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShortError(
            "Out of memory in training, though its largest micro-batch had fitted: something else took memory since.\n"
            "End other programs, then go on with --resume."
        ) from error


def _measure_lengths(rows: Sequence[Row]) -> list[int]:
    """Tokens of every row; rows that stay on disk know theirs."""
    return rows.lengths.tolist() if hasattr(rows, "lengths") else [len(row.input_ids) for row in rows]


def _make_dataset(rows: Sequence[Row]) -> "Dataset":
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
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)
