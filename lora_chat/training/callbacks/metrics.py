"""Callback that writes the metrics of each step, shows progress and stops training on request."""

import json
import logging
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import explain_write_errors
from lora_chat.runs.metrics_log import MetricsLog
from lora_chat.system.atomic_write import open_to_append
from lora_chat.training.loss_scale import LossScale
from lora_chat.training.progress_bar import ProgressView, StepReport
from lora_chat.training.stop_request import StopRequest, TrainingNotStarted

if TYPE_CHECKING:
    from lora_chat.training.trainer import PackedSFTTrainer

logger = logging.getLogger(__name__)


class MetricsCallback(TrainerCallback):
    """Writer of one JSON object per step to the metrics file."""

    def __init__(
        self,
        trainer: "PackedSFTTrainer",
        metrics_path: Path,
        earlier_metrics: MetricsLog,
        view: ProgressView,
        stop_request: StopRequest,
        loss_scale: LossScale | None = None,
    ) -> None:
        self._trainer = trainer
        self._metrics_path = metrics_path
        self._earlier_metrics = earlier_metrics
        """Metrics of the steps before the resumed checkpoint."""
        self._view = view
        self._stop_request = stop_request
        self._loss_scale = loss_scale
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Raise TrainingNotStarted if no step is left."""
        self._first_step = step = state.global_step
        if step >= state.max_steps or self._stop_request.signal_number:
            raise TrainingNotStarted
        self._started = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Stop after this step if a signal asked for it."""
        control.should_training_stop |= bool(self._stop_request.signal_number)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Stop after this checkpoint if a signal asked for it."""
        control.should_training_stop |= bool(self._stop_request.signal_number)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Write and show the training loss or the validation loss of a step."""
        logs = logs or {}
        if "eval_loss" in logs:
            loss = float(logs["eval_loss"])
            row = {"step": state.global_step, "validation_loss": loss}
            self._write(row | {"token_accuracy": float(logs["eval_token_accuracy"])})
            logger.info(f"step {state.global_step}/{state.max_steps}  validation loss {loss:.3f}")
            self._view.show_validation(state.global_step, state.max_steps, loss)
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        seconds = time.monotonic() - self._started
        tokens = self._trainer.supervised_tokens
        norm, learning_rate = logs.get("grad_norm"), float(logs.get("learning_rate", 0.0))
        self._write(
            {
                "step": state.global_step,
                "epoch": round(state.epoch or 0.0, 4),
                "loss": loss,
                "gradient_norm": None if norm is None else float(norm),
                "learning_rate": learning_rate,
                "supervised_tokens": tokens,
                "seconds": round(self._earlier_metrics.seconds + seconds, 3),
                **(self._loss_scale.read_figures() if self._loss_scale else {}),
            }
        )
        seconds_left = seconds / (state.global_step - self._first_step) * (state.max_steps - state.global_step)
        tokens_per_second = (tokens - self._earlier_metrics.supervised_tokens) / max(seconds, 1e-9)
        step, steps = state.global_step, state.max_steps
        self._view.show_step(StepReport(step, steps, loss, tokens_per_second, seconds_left, learning_rate))
        if self._view.wants_stop:
            self._stop_request.received = self._stop_request.received or signal.SIGINT

    def _write(self, row: Mapping[str, float | None]) -> None:
        """Append one row to the metrics file."""
        with explain_write_errors(self._metrics_path, "metrics"), open_to_append(self._metrics_path) as file:
            file.write(json.dumps(row) + "\n")
