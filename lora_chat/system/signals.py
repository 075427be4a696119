"""Signals outside of training: they stop the command immediately and are recorded.

Libraries sometimes catch the exception while they are imported or in finalizers. The command therefore checks
`first_received_signal` between two stages of its work.
"""

import signal
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received_signals: list[int] = []


class SignalInterrupt(KeyboardInterrupt):
    """The interruption by a signal with the given number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def raise_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise SignalInterrupt in the main thread from now on."""
    _received_signals.clear()
    for number in STOP_SIGNALS:
        signal.signal(number, _raise_interrupt)


def first_received_signal() -> int:
    """Return the first signal received after `raise_on_signals`, or 0."""
    return _received_signals[0] if _received_signals else 0


def signal_number(error: KeyboardInterrupt) -> int:
    """Return the signal of an interruption; a plain KeyboardInterrupt is Ctrl-C."""
    return error.number if isinstance(error, SignalInterrupt) else signal.SIGINT


def _raise_interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _received_signals.append(number)
    raise SignalInterrupt(number)
