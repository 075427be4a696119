"""Messages printed by a thread, so that a full pipe or a slow terminal never delays an answer."""

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_WAITING = 2000
"""Messages that wait to be printed; later ones are dropped and counted."""
_END_SECONDS = 1.0


class _WaitingMessages(logging.Handler):
    """A handler that puts messages into a bounded queue."""

    def __init__(self, targets: list[logging.Handler]) -> None:
        super().__init__()
        self._targets = targets
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(_MAX_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._print_all, name="messages", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a message, or count it if the queue is full."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def finish(self) -> bool:
        """Print the waiting messages. Return whether that worked; nobody may read the pipe."""
        try:
            self._queue.put(None, timeout=_END_SECONDS)
        except queue.Full:
            return False
        self._thread.join(_END_SECONDS)
        return not self._thread.is_alive()

    def _print_all(self) -> None:
        while (record := self._queue.get()) is not None:
            if self._dropped and self._queue.empty():
                dropped, self._dropped = self._dropped, 0
                self._print(
                    logging.LogRecord(
                        record.name, logging.WARNING, "", 0, f"{dropped} messages were left out.", (), None
                    )
                )
            self._print(record)

    def _print(self, record: logging.LogRecord) -> None:
        for target in self._targets:
            try:
                target.handle(record)
            except (OSError, ValueError):  # the reader of a pipe is gone
                self._dropped += 1


class BackgroundPrinter:
    """The state of messages that a thread prints."""

    is_stuck = False
    """Whether messages could not be printed at the end, because nobody reads them."""


@contextmanager
def print_in_background(name: str = "lora_chat") -> Iterator[BackgroundPrinter]:
    """Print the messages of a logger by a thread during the block."""
    package_logger = logging.getLogger(name)
    before, printer = package_logger.handlers[:], BackgroundPrinter()
    handler = _WaitingMessages(before)
    package_logger.handlers[:] = [handler]
    try:
        yield printer
    finally:
        printer.is_stuck = not handler.finish()
        package_logger.handlers[:] = before
