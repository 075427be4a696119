"""Signals outside of training: they stop the command immediately and are recorded.

Libraries sometimes catch the exception while they are imported or in finalizers. The command therefore checks
`first_received_signal` between two stages of its work.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received_signals: list[int] = []
_is_leaving = False
"""Whether the command is ending, so that later signals have no effect."""
_is_users_program = False
"""Whether the work is a call of the Python API, whose process belongs to the user."""
_may_catch = True
"""Whether training may install handlers."""


class SignalInterrupt(KeyboardInterrupt):
    """The interruption by a signal with the given number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def raise_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise SignalInterrupt in the main thread from now on."""
    global _is_leaving
    _is_leaving = False
    _received_signals.clear()
    for number in STOP_SIGNALS:
        signal.signal(number, _raise_interrupt)


def unblock_signals() -> None:
    """Receive the stop signals that the launcher blocked while this process started; a waiting one raises now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def ignore_later_signals() -> None:
    """Give later signals no effect, because the command is ending for another reason and cleans up."""
    global _is_leaving
    _is_leaving = True


def ignore_signals() -> None:
    """Ignore stop signals until this process has ended, because its work is done; torchrun may still send one."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def first_received_signal() -> int:
    """Return the first signal received after `raise_on_signals`, or 0; in a program of the user it is always 0."""
    return _received_signals[0] if _received_signals and not _is_users_program else 0


@contextmanager
def unchanged_handlers(*, except_in_training: bool = False) -> Iterator[None]:
    """Install no handlers until the block ends, because the signals belong to the user's program.

    With `except_in_training`, the user has asked that a signal stops training after the present step.
    """
    global _is_users_program, _may_catch
    _is_users_program, _may_catch = True, except_in_training
    try:
        yield
    finally:
        _is_users_program, _may_catch = False, True


def may_install_handlers() -> bool:
    """Return whether training may install handlers."""
    return _may_catch


def signal_number(error: KeyboardInterrupt) -> int:
    """Return the signal of an interruption; a plain KeyboardInterrupt is Ctrl-C."""
    return error.number if isinstance(error, SignalInterrupt) else signal.SIGINT


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    if _is_leaving:
        return
    _received_signals.append(number)
    raise SignalInterrupt(number)
