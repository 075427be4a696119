"""Signals outside of training: they stop the command at once, and are remembered.

Libraries that are being imported, and finalizers, sometimes swallow the exception; who asks `first_received_signal`
between two stages of work stops all the same.
"""

import signal
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received_signals: list[int] = []


class SignalInterrupt(KeyboardInterrupt):
    """A signal has come; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def raise_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP raise Signalled in the main thread."""
    _received_signals.clear()
    for number in STOP_SIGNALS:
        signal.signal(number, _raise_interrupt)


def first_received_signal() -> int:
    """The first signal that has come since, or 0."""
    return _received_signals[0] if _received_signals else 0


def signal_number(error: KeyboardInterrupt) -> int:
    """Which signal an interruption comes from; a plain KeyboardInterrupt is Ctrl-C."""
    return error.number if isinstance(error, SignalInterrupt) else signal.SIGINT


def _raise_interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _received_signals.append(number)
    raise SignalInterrupt(number)
