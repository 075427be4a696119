"""The first Ctrl-C, SIGTERM or SIGHUP asks training to stop after its step; a second one stops at once."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lora_chat.system.signals import STOP_SIGNALS, SignalInterrupt, first_received_signal

logger = logging.getLogger(__name__)


class StopRequest:
    """Which signal has asked to stop, if any."""

    signal_number: int = 0


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Take the signals over for the length of the block; outside the main thread do nothing."""
    request = StopRequest()
    request.signal_number = first_received_signal()  # one that a library swallowed on the way here
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signal_number: int, frame: FrameType | None) -> None:
        if request.signal_number:
            raise SignalInterrupt(signal_number)
        request.signal_number = signal_number
        logger.info("Stopping after this optimizer step, with a checkpoint; once more to stop at once.")

    previous_handlers = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
