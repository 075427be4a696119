"""The progress of a run as events for a function of the user."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lora_chat.system.console import print_result
from lora_chat.system.sanitize import sanitize_text

_PACKAGE = "lora_chat"


@dataclass(frozen=True)
class ProgressEvent:
    """A stage that begins, a message, a training step that has ended, or a validation loss that was measured."""

    stage: str
    """Present stage of the run, such as `reading the dialogues`, `training` or `finished`."""
    message: str | None = None
    """Message for people; None for other events. It may have several lines."""
    step: int | None = None
    """Number of the optimizer step that has ended; None for events outside training."""
    steps: int | None = None
    """Number of optimizer steps of the total training."""
    loss: float | None = None
    """Training loss of the step, in nats per supervised token."""
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    """Supervised tokens per second since training began."""
    seconds_left: float | None = None
    """Estimated seconds until training ends."""
    validation_loss: float | None = None
    """Loss on the validation set after this step, in nats per supervised token; None if it was not measured."""

    def __str__(self) -> str:
        if self.message is not None:
            return self.message
        if self.step is None:
            return f"{self.stage} ..."
        text = f"step {self.step}/{self.steps}"
        if self.validation_loss is not None:
            return f"{text}  validation loss {self.validation_loss:.3f}"
        from lora_chat.training.progress_bar import format_duration

        return (
            f"{text}  loss {self.loss:.3f}  {self.tokens_per_second:.0f} supervised tokens/s  "
            f"{format_duration(self.seconds_left or 0.0)} left"
        )


OnProgress = Callable[[ProgressEvent], object]
"""Function of the user that receives the events; an exception that it raises stops the run."""


class ProgressPrinter:
    """Printer of events as plain lines on stdout, for notebooks and logs; it writes no control codes."""

    def __init__(self, seconds_between_steps: float = 2.0) -> None:
        self._seconds_between_steps = seconds_between_steps
        self._last_time = float("-inf")

    def __call__(self, event: ProgressEvent) -> None:
        """Print an event. Steps are left out if the last printed one is recent, except for the first and the last."""
        if event.loss is not None and event.step not in (1, event.steps):
            if time.monotonic() - self._last_time < self._seconds_between_steps:
                return
            self._last_time = time.monotonic()
        print_result(str(event))


print_progress = ProgressPrinter()
"""Ready function for `fine_tune(..., on_progress=print_progress)`."""


@contextmanager
def forwarded_messages(forward: Callable[[str], None]) -> Iterator[None]:
    """Pass the package's messages for people to a function until the block ends.

    Other handlers of the user receive the same messages as without this block.
    """
    package = logging.getLogger(_PACKAGE)
    level, propagate = package.level, package.propagate
    shown_level = package.getEffectiveLevel()
    handler = _ForwardHandler(forward, shown_level if propagate else None)
    package.addHandler(handler)
    package.setLevel(min(shown_level, logging.INFO))
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        package.propagate = propagate


class _ForwardHandler(logging.Handler):
    """Handler that passes messages to a function, and records of the user's level to the handlers of the root."""

    def __init__(self, forward: Callable[[str], None], propagated_level: int | None) -> None:
        super().__init__()
        self._forward = forward
        self._propagated_level = propagated_level

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        if record.levelno >= logging.INFO:
            self._forward(sanitize_text(record.getMessage()))
        if self._propagated_level is not None and record.levelno >= self._propagated_level:
            logging.getLogger().callHandlers(record)
