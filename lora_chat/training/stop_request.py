"""The first Ctrl-C, SIGTERM or SIGHUP asks training to stop after its step; a second one stops at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lora_chat.system.signals import SIGNALS, Signalled, signal_asked


class StopRequest:
    """Which signal has asked to stop, if any."""

    number: int = 0


@contextmanager
def stop_requests(notice: Callable[[str], None]) -> Iterator[StopRequest]:
    """Take the signals over for the length of the block; outside the main thread do nothing."""
    request = StopRequest()
    request.number = signal_asked()  # one that a library swallowed on the way here
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.number:
            raise Signalled(number)
        request.number = number
        notice("Stopping after this optimizer step, with a checkpoint; once more to stop at once.")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
