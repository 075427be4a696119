"""Run one optimizer step of lora_chat's own training and keep its gradients."""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from transformers import Trainer, TrainerCallback

from lora_chat.config.plan import TrainingPlan, make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.models.base_model import LocalBase, load_tokenizer
from lora_chat.system.hardware import detect_hardware
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import EncodedRow, TrainingRun

if TYPE_CHECKING:
    from lora_chat.config.plan import PrecisionPlan


@dataclass(frozen=True)
class StepResult:
    """Loss and gradients of one step, and the messages of the training."""

    loss: float
    gradients: dict[str, torch.Tensor]
    """Gradient of each LoRA tensor in fp32, in main memory."""
    notes: tuple[str, ...]


class GradientRecorder(TrainerCallback):
    """Copy of the gradients before the optimizer's step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Copy the gradients of this step."""
        self.gradients = {
            name: (torch.zeros_like(p) if p.grad is None else p.grad).detach().float().cpu().clone()
            for name, p in model.named_parameters()
            if p.requires_grad
        }


class NoteCollector(logging.Handler):
    """Collector of the messages that lora_chat logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, unless it is the line of a step."""
        text = record.getMessage()
        if not text.startswith("step "):
            self.notes.append(text)


@contextmanager
def collected_notes() -> Iterator[list[str]]:
    """Collect the messages of lora_chat until the block ends."""
    logger, collector = logging.getLogger("lora_chat"), NoteCollector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    try:
        yield collector.notes
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)


@contextmanager
def trainer_callback(callback: TrainerCallback) -> Iterator[None]:
    """Add a callback to every trainer, and let it take the rows in their order."""
    stock = Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Train in the order of the rows."""
        self.args.train_sampling_strategy = "sequential"
        self.add_callback(callback)
        return stock(self, *args, **kwargs)

    with patch.object(Trainer, "train", train):
        yield


def plan_training(rows: int, **settings: Any) -> TrainingPlan:
    """Return a plan with all rows in one step, unless the settings say something else."""
    training = {
        "effective_batch_size": rows,
        "learning_rate": 1e-9,
        "schedule": "constant",
        "warmup_share": 0.0,
        "max_grad_norm": 1e9,
        "optimizer": "adamw",
        "gradient_checkpointing": False,
    } | settings
    return make_plan(
        Recipe.model_validate({"data": {"train": "random"}, "training": training}), detect_hardware()
    ).training


def run_step(
    model: Any, folder: Path, rows: Sequence[EncodedRow], precision: "PrecisionPlan", *, fast: bool
) -> StepResult:
    """Train one step of all rows. Return its loss, gradients and messages; the adapter's values change."""
    plan = plan_training(len(rows), max_steps=1, fast_path=fast)
    recorder = GradientRecorder()
    with tempfile.TemporaryDirectory() as temporary, collected_notes() as notes, trainer_callback(recorder):
        metrics = Path(temporary) / "metrics.jsonl"
        train_sft(
            TrainingRun(
                model=model,
                tokenizer=load_tokenizer(LocalBase("random", folder)),
                train_rows=rows,
                validation_rows=[],
                plan=plan,
                metrics_path=metrics,
                bfloat16=precision.dtype == "bfloat16",
                float16=precision.dtype == "float16",
            )
        )
        loss = json.loads(metrics.read_text(encoding="utf-8").splitlines()[0])["loss"]
    return StepResult(loss, recorder.gradients, tuple(notes))
