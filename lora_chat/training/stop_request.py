"""Requests to stop training: the first signal waits for the current step, and a second one stops immediately."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lora_chat.system.signals import STOP_SIGNALS, SignalInterrupt, first_received_signal

logger = logging.getLogger(__name__)


class EvaluationStopped(Exception):
    """A stop of the validation loss, requested by a signal."""


class TrainingNotStarted(Exception):
    """An end of training before its first step: no step is left, or only the memory was checked."""


class StopRequest:
    """The first signal that asked training to stop."""

    signal_number: int = 0
    """Number of the signal, or 0."""


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Handle Ctrl-C, SIGTERM and SIGHUP during the block; do nothing outside the main thread."""
    request = StopRequest()
    request.signal_number = first_received_signal()  # a library may have caught an earlier one
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signal_number: int, frame: FrameType | None) -> None:
        if request.signal_number:
            raise SignalInterrupt(signal_number)
        request.signal_number = signal_number
        logger.info("Stopping after this optimizer step, with a checkpoint. Send the signal again to stop immediately.")

    previous_handlers = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
