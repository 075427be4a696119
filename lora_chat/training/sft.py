"""Encoded dialogues + adapted model -> TRL's SFTTrainer -> report. The only door to TRL."""

import ctypes
import os
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lora_chat.errors import MemoryShortError
from lora_chat.planning.plan import TrainingPlan
from lora_chat.training.progress import open_view
from lora_chat.training.signals import stop_requests

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase
    from trl import SFTConfig

    from lora_chat.training.committing import Keeping


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
    supervised_tokens: int
    signal_number: int
    """The signal that ended it early, or 0."""


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
) -> TrainingReport:
    """Train the adapter in place on rows that carry their labels; TRL casts and patches the model.

    One JSON object a step is appended to `metrics`. With `keeping`, checkpoints are written, and perhaps one is
    continued. Raises MemoryShortError, NotFiniteError, SpaceError.
    """
    import torch
    from transformers import PrinterCallback

    from lora_chat.training.checkpointing import PartialCheckpointing
    from lora_chat.training.committing import Committer
    from lora_chat.training.fast_path import find_fast_path
    from lora_chat.training.finite_guard import FiniteGuard
    from lora_chat.training.metrics_file import cut_metrics
    from lora_chat.training.recording import Recorder
    from lora_chat.training.trainer import StepTrainer

    on_cpu = model.device.type == "cpu"
    if tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(tensorboard)
    view = open_view()
    trainer = None
    stock_attention = model.config._attn_implementation
    try:
        with stop_requests(view.note) as stop:
            resume = keeping.resume if keeping else None
            done = cut_metrics(metrics, resume.step if resume else 0)
            recorder = Recorder(metrics, view, stop, before=done.get("seconds", 0.0))
            guard = FiniteGuard()
            committer = Committer(keeping, asked=lambda: bool(stop.number)) if keeping else None
            path = find_fast_path(model, train[0].input_ids, plan)
            for note in path.notes:
                view.note(note)
            whole_steps = path.collator is not None
            trainer = StepTrainer(
                model=model,
                args=_make_config(
                    plan,
                    keeping.folder if keeping else metrics.parent,
                    bfloat16,
                    on_cpu,
                    each_epoch,
                    tensorboard is not None,
                    whole_steps,
                ),
                data_collator=path.collator,
                train_dataset=_make_dataset(train),
                eval_dataset=_make_dataset(validation) if each_epoch else None,
                processing_class=tokenizer,
                callbacks=[guard, recorder, *([committer] if committer else [])],
            )
            recorder.trainer = guard.trainer = trainer
            trainer.supervised_tokens = done.get("supervised_tokens", 0)
            trainer.head = path.head
            if plan.gradient_checkpointing is not True and plan.gradient_checkpointing:
                trainer.add_callback(PartialCheckpointing(plan.gradient_checkpointing))
            trainer.remove_callback(PrinterCallback)
            _cast_adapter(model, torch.float32)
            if on_cpu:
                _keep_memory()
            started = time.monotonic()
            with path.layers(model), committer.explained() if committer else nullcontext():
                trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)
            seconds = time.monotonic() - started
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryShortError(_smaller(plan)) from error
    finally:
        view.close()
        if trainer is not None:  # undo the autocast around forward: what is measured is what is loaded later
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if bfloat16:
            _cast_adapter(model, torch.bfloat16)
        if on_cpu:
            _give_memory_back()
        model.set_attn_implementation(stock_attention)
    return TrainingReport(
        steps=trainer.state.global_step,
        planned_steps=trainer.state.max_steps,
        seconds=seconds,
        supervised_tokens=int(trainer.supervised_tokens),
        signal_number=stop.number if trainer.state.global_step < trainer.state.max_steps else 0,
    )


def _make_dataset(rows: Sequence[Row]) -> "Dataset":
    """Only ids and labels: any other column of a row could steer TRL. Rows that stay on disk have one already."""
    from datasets import Dataset

    if hasattr(rows, "dataset"):
        return rows.dataset
    return Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})


def _make_config(
    plan: TrainingPlan,
    folder: Path,
    bfloat16: bool,
    on_cpu: bool,
    each_epoch: bool,
    tensorboard: bool,
    whole_steps: bool,
) -> "SFTConfig":
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps or -1,
        per_device_train_batch_size=plan.effective_batch_size if whole_steps else plan.micro_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=1 if whole_steps else plan.gradient_accumulation_steps,
        gradient_checkpointing=bool(plan.gradient_checkpointing),
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant_with_warmup" if plan.schedule == "constant" else plan.schedule,
        warmup_steps=plan.warmup_share,
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        seed=plan.seed,
        bf16=bfloat16,
        use_cpu=on_cpu,
        max_length=None,  # longer rows were refused or dropped before
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="epoch" if each_epoch else "no",
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=["tensorboard"] if tensorboard else [],
        disable_tqdm=True,
    )


def _cast_adapter(model: "PeftModel", dtype: "torch.dtype") -> None:
    """TRL casts LoRA on a quantised base to bf16. There Adam's second moment stands still: a step changes it
    by 0.1 % and bf16 has steps of 0.4 %. So it is trained in fp32, and rounded once at the end.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)


def _keep_memory(size: int = 2**31 - 1) -> None:
    """Let glibc keep freed blocks: it maps and clears large ones afresh for every operation otherwise."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, size)


def _give_memory_back() -> None:
    """glibc's own settings again: generation frees growing caches, which would never be reused."""
    if platform.libc_ver()[0] == "glibc":
        _keep_memory(2**17)
        ctypes.CDLL(None).malloc_trim(0)


def _smaller(plan: TrainingPlan) -> str:
    tries = []
    if plan.micro_batch_tokens and plan.micro_batch_tokens > 512:
        tries.append("--set training.micro_batch_tokens=512 (the same result, in smaller pieces)")
    if plan.micro_batch_size > 1:
        tries.append("--set training.micro_batch_size=1 (the same result, one dialogue at a time)")
    if not plan.gradient_checkpointing:
        tries.append("--set training.gradient_checkpointing=true (the same result, slower)")
    tries.append("--set data.max_length=N with --set data.over_long=drop (leaves long dialogues out)")
    return "Out of memory in training; no adapter was saved. Try, in this order:\n" + "\n".join(tries)
