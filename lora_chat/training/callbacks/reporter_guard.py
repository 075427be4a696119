"""Protection of a training against the failures of a service that receives its metrics."""

import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from lora_chat.errors import first_line

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_GUARDED = {"WandbCallback": "wandb", "MLflowCallback": "mlflow", "TrackioCallback": "trackio"}
"""Classes of Transformers' integrations, and the names of their services. TensorBoard writes only files of the run."""


class ReporterGuard(TrainerCallback):
    """A callback that forwards events to an integration and leaves it out after its first failure."""

    def __init__(self, integration: TrainerCallback, name: str) -> None:
        self._integration: TrainerCallback | None = integration
        self._name = name

    def _forward(
        self, event: str, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", extra: Any
    ) -> None:
        """Call the integration, and warn once if it fails."""
        if self._integration is None:
            return
        try:
            getattr(self._integration, event)(args, state, control, **extra)
        except Exception as error:
            self._integration = None
            logger.warning(
                f"{self._name} failed and gets no more metrics: {first_line(error)}. "
                "Training continues; all metrics are in metrics.jsonl."
            )

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **extra: Any
    ) -> None:
        self._forward("on_train_begin", args, state, control, extra)

    def on_log(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **extra: Any) -> None:
        self._forward("on_log", args, state, control, extra)

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **extra: Any
    ) -> None:
        self._forward("on_train_end", args, state, control, extra)


def guard_reporters(trainer: "Trainer") -> None:
    """Replace the integrations of services by guards. Saved checkpoints and models are not forwarded."""
    callbacks = trainer.callback_handler.callbacks
    for number, callback in enumerate(callbacks):
        name = _GUARDED.get(type(callback).__name__)
        if name is not None:
            callbacks[number] = ReporterGuard(callback, name)
