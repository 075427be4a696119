"""Callback that measures the validation set during training, keeps the best steps and stops training early."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.processes.group import current_group
from lora_chat.runs.metrics_log import MetricsLog
from lora_chat.training.callbacks.step_schedule import MeasurementSchedule
from lora_chat.training.measured_steps import MeasuredSteps
from lora_chat.training.row_scores import RowScores
from lora_chat.training.stop_request import EvaluationStopped, StopRequest, TrainingNotStarted

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from lora_chat.training.trainer import PackedSFTTrainer

logger = logging.getLogger(__name__)


class ValidationCallback(TrainerCallback):
    """Measurement of the validation set after the steps of a schedule, once their checkpoint is complete."""

    def __init__(
        self,
        trainer: "PackedSFTTrainer",
        schedule: MeasurementSchedule,
        measure: Callable[[Callable[[], None]], RowScores],
        measured_steps: MeasuredSteps,
        earlier_metrics: MetricsLog,
        stop_request: StopRequest,
        list_checkpoint_steps: Callable[[], list[int]],
    ) -> None:
        self._trainer = trainer
        self._schedule = schedule
        self._measure = measure
        """Function that returns the scores of the validation set; it calls its argument before each micro-batch."""
        self._measured_steps = measured_steps
        self._earlier_metrics = earlier_metrics
        self._stop_request = stop_request
        self._list_checkpoint_steps = list_checkpoint_steps
        self._is_due = False
        trainer.measure_validation = self._measure_step

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: "DataLoader[object] | None" = None,
        **kwargs: object,
    ) -> None:
        """Measure the resumed step if its measurement is missing. Raise TrainingNotStarted if training had stopped."""
        step = state.global_step
        if not step:
            return
        has_metrics = self._earlier_metrics.has_validation_loss(step)
        measurement = self._measured_steps.find(step)
        if measurement is None and not has_metrics and self._schedule.is_due(args, state, train_dataloader):
            self._measure_step()  # the run stopped between the checkpoint and the measurement
        elif measurement is not None and not has_metrics:  # or between the measurement and its metrics
            self._trainer.log_validation(measurement.validation_loss, measurement.token_accuracy)
        if measurement is not None:  # or before old copies were deleted
            self._measured_steps.delete_unneeded_copies(self._list_checkpoint_steps())
        if self._measured_steps.should_stop:
            raise TrainingNotStarted

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: "DataLoader[object] | None" = None,
        **kwargs: object,
    ) -> None:
        """Request a measurement, which follows the checkpoint if one is written."""
        self._is_due = self._schedule.is_due(args, state, train_dataloader)
        control.should_evaluate = self._is_due and not control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Measure the step of the checkpoint if it is due."""
        if self._is_due:
            self._measure_step()

    def _measure_step(self) -> None:
        """Measure the last step and stop training if it has not improved for too long; a signal ends it."""
        self._is_due = False
        state, control = self._trainer.state, self._trainer.control
        try:
            scores = self._measure(self._check_stop)
        except EvaluationStopped:
            self._stop_request.agree(current_group())
            control.should_training_stop = True
            return
        measurement = self._measured_steps.add(self._trainer.model, state.global_step, scores)
        self._trainer.log_validation(measurement.validation_loss, measurement.token_accuracy)
        self._measured_steps.delete_unneeded_copies(self._list_checkpoint_steps())
        if self._measured_steps.should_stop and state.global_step < state.max_steps:
            logger.info(f"Training stops after step {state.global_step}, because the validation set did not improve.")
            control.should_training_stop = True

    def _check_stop(self) -> None:
        """Raise EvaluationStopped if a signal asked to stop, because a measurement may take minutes."""
        if self._stop_request.received:
            raise EvaluationStopped
