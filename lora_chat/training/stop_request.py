"""Requests to stop training: the first signal waits for the current step, and a second one stops immediately."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lora_chat.processes.group import ProcessGroup, current_group
from lora_chat.system.signals import STOP_SIGNALS, SignalInterrupt, first_received_signal, may_install_handlers

logger = logging.getLogger(__name__)


class EvaluationStopped(Exception):
    """A stop of the validation loss, requested by a signal."""


class TrainingNotStarted(Exception):
    """An end of training before its first step: no step is left, or only the memory was checked."""


class StopRequest:
    """The first signal that asked training to stop; with several processes it counts once all know of it."""

    received: int = 0
    """Number of the first signal that this process has received, or 0."""
    agreed: int | None = None
    """Number of the signal on which all processes agree; None in a group of one."""

    @property
    def signal_number(self) -> int:
        """Return the number of the signal that stops training now, or 0."""
        return self.received if self.agreed is None else self.agreed

    def agree(self, group: ProcessGroup) -> None:
        """Learn whether any process has received a signal."""
        if group.size > 1:
            self.agreed = int(group.largest(self.received))


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Handle Ctrl-C, SIGTERM and SIGHUP during the block; do nothing outside the main thread or in a user's program."""
    request = StopRequest()
    request.received = first_received_signal()  # a library may have caught an earlier one
    if threading.current_thread() is not threading.main_thread() or not may_install_handlers():
        yield request
        return

    def handle(signal_number: int, frame: FrameType | None) -> None:
        if request.received:
            raise SignalInterrupt(signal_number)
        request.received = signal_number
        if current_group().is_broken():
            return  # torchrun stops this process because another one has ended
        logger.info("Stopping after this optimizer step, with a checkpoint. Send the signal again to stop immediately.")

    previous_handlers = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
