"""Signals outside of training: they stop the command at once, and are remembered.

Libraries that are being imported, and finalizers, sometimes swallow the exception; who asks `signal_asked`
between two stages of work stops all the same.
"""

import signal
from types import FrameType
from typing import NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_asked: list[int] = []


class Signalled(KeyboardInterrupt):
    """A signal has come; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def raise_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP raise Signalled in the main thread."""
    _asked.clear()
    for number in SIGNALS:
        signal.signal(number, _raise)


def signal_asked() -> int:
    """The first signal that has come since, or 0."""
    return _asked[0] if _asked else 0


def signal_of(error: KeyboardInterrupt) -> int:
    """Which signal an interruption comes from; a plain KeyboardInterrupt is Ctrl-C."""
    return error.number if isinstance(error, Signalled) else signal.SIGINT


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    _asked.append(number)
    raise Signalled(number)
