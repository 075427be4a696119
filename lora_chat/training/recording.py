"""A trainer callback that watches each step: writes metrics, shows progress, refuses NaN, obeys signals."""

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import NotFiniteError, explain_write_errors
from lora_chat.training.progress import ProgressView, StepReport
from lora_chat.training.signals import StopRequest


class Recorder(TrainerCallback):
    """Appends one JSON object a step to the metrics file."""

    def __init__(self, metrics: Path, view: ProgressView, stop: StopRequest, before: float = 0.0) -> None:
        self._metrics = metrics
        self._view = view
        self._stop = stop
        self._started = 0.0
        self._before = before
        """Seconds that were trained before a checkpoint was continued."""
        self._first = 0
        self.trainer: Any = None
        """Set once the trainer exists; it counts the supervised tokens."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.monotonic()
        self._first = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stop.number:
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            loss = float(logs["eval_loss"])
            self._write({"step": state.global_step, "validation_loss": loss})
            self._view.note(f"step {state.global_step}/{state.max_steps}  validation loss {loss:.3f}")
        if "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFiniteError(
                f"Training went wrong at step {state.global_step}: loss {loss}, gradient norm {norm}.\n"
                "No adapter was saved. Try a lower learning rate: "
                f"--set training.learning_rate={args.learning_rate / 4:g}"
            )
        seconds = time.monotonic() - self._started
        tokens = int(self.trainer.supervised_tokens)
        self._write(
            {
                "step": state.global_step,
                "epoch": round(state.epoch or 0.0, 4),
                "loss": loss,
                "gradient_norm": norm,
                "learning_rate": float(logs.get("learning_rate", 0.0)),
                "supervised_tokens": tokens,
                "seconds": round(self._before + seconds, 3),
            }
        )
        left = seconds / (state.global_step - self._first) * (state.max_steps - state.global_step)
        rate = tokens / max(self._before + seconds, 1e-9)
        self._view.step(StepReport(state.global_step, state.max_steps, loss, rate, left))

    def _write(self, row: dict[str, Any]) -> None:
        with explain_write_errors(self._metrics, "metrics"), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
