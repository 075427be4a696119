"""Protection of a training against the failures of a service that receives its metrics."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from lora_chat.errors import first_line

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_LOCAL = "tensorboard"
"""Service that writes only files of the run, whose failures end the training like those of other files."""
GUARDED = {
    "TensorBoardCallback": _LOCAL,
    "WandbCallback": "wandb",
    "MLflowCallback": "mlflow",
    "TrackioCallback": "trackio",
    "CometCallback": "comet_ml",
    "SwanLabCallback": "swanlab",
}
"""Classes of Transformers' integrations, and the names of their services."""


class ReporterGuard(TrainerCallback):
    """A callback that forwards events to an integration and leaves it out after its first failure.

    The end of training is forwarded later, by `end_training`, because the comparison comes after it.
    """

    def __init__(self, integration: TrainerCallback, name: str) -> None:
        self._integration: TrainerCallback | None = integration
        self.name = name
        self._last: tuple[TrainingArguments, TrainerState, TrainerControl] | None = None
        """Arguments of the last event, without the model, which must not stay in memory."""

    def call(self, function: Callable[[], object]) -> None:
        """Call a function of the service, and warn once if it fails."""
        if self._integration is None:
            return
        try:
            function()
        except Exception as error:
            self._integration = None
            logger.warning(
                f"{self.name} failed and gets no more metrics: {first_line(error)}. "
                "Training continues; all metrics are in metrics.jsonl."
            )

    def _forward(
        self, event: str, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", extra: Any
    ) -> None:
        """Call the integration, and remember the arguments."""
        integration = self._integration
        if integration is None:
            return
        self._last = (args, state, control)
        if self.name == _LOCAL:
            getattr(integration, event)(args, state, control, **extra)
        else:
            self.call(lambda: getattr(integration, event)(args, state, control, **extra))

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **extra: Any
    ) -> None:
        self._forward("on_train_begin", args, state, control, extra)

    def on_log(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **extra: Any) -> None:
        self._forward("on_log", args, state, control, extra)

    def log_final(self, values: Mapping[str, float | str]) -> None:
        """Forward values that belong to the whole run, at its last step."""
        integration, last = self._integration, self._last
        if integration is not None and last is not None:
            self.call(lambda: integration.on_log(*last, logs=dict(values)))

    def end_training(self) -> None:
        """Forward the end of training."""
        integration, last = self._integration, self._last
        if integration is not None and last is not None:
            self.call(lambda: integration.on_train_end(*last))
        self._integration = None


def guard_integrations(trainer: "Trainer") -> list[ReporterGuard]:
    """Replace the integrations of services by guards and return them. Checkpoints and models are not forwarded."""
    callbacks = trainer.callback_handler.callbacks
    guards = []
    for number, callback in enumerate(callbacks):
        name = GUARDED.get(type(callback).__name__)
        if name is not None:
            guards.append(ReporterGuard(callback, name))
            callbacks[number] = guards[-1]
    return guards
