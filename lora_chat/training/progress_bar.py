"""Progress of training for people: a live bar in a terminal, plain lines elsewhere."""

import os
import sys
import time
from dataclasses import dataclass
from typing import Protocol

from lora_chat.processes.group import current_group
from lora_chat.system.bar import LiveBar
from lora_chat.system.console import is_terminal, print_message

_SECONDS_BETWEEN_LINES = 10.0
"""Shortest time between two plain lines, in seconds."""


@dataclass(frozen=True)
class StepReport:
    """The progress after one optimizer step."""

    step: int
    steps: int
    """Optimizer steps of the total training."""
    loss: float
    tokens_per_second: float
    """Supervised tokens per second."""
    seconds_left: float
    learning_rate: float = 0.0

    def __str__(self) -> str:
        return (
            f"step {self.step}/{self.steps}  loss {self.loss:.3f}  "
            f"{self.tokens_per_second:.0f} supervised tokens/s  {format_duration(self.seconds_left)} left"
        )


class ProgressView(Protocol):
    """A display of the steps of one training."""

    @property
    def wants_stop(self) -> bool:
        """Return whether training should stop after the present step, with a checkpoint."""

    def show_step(self, report: StepReport) -> None:
        """Show a step that has ended."""

    def show_validation(self, step: int, steps: int, loss: float) -> None:
        """Show the validation loss after a step, beside the message about it."""

    def close(self) -> None:
        """End the display."""


class _LocalView:
    """A display that never stops training, and leaves validation losses to their messages."""

    wants_stop = False

    def show_validation(self, step: int, steps: int, loss: float) -> None:
        pass


class BarView(_LocalView):
    """A display as a live line in a terminal, on stderr."""

    def __init__(self) -> None:
        self._bar = LiveBar("first step ...")

    def show_step(self, report: StepReport) -> None:
        self._bar.update(str(report), report.step, report.steps)

    def close(self) -> None:
        self._bar.close()


class LineView(_LocalView):
    """A display as plain lines on stderr, for logs and pipes."""

    def __init__(self) -> None:
        self._last_line = -_SECONDS_BETWEEN_LINES

    def show_step(self, report: StepReport) -> None:
        now = time.monotonic()
        if report.step in (1, report.steps) or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print_message(str(report))

    def close(self) -> None:
        pass


class HiddenView(_LocalView):
    """No display, for processes whose steps the first process shows."""

    def show_step(self, report: StepReport) -> None:
        pass

    def close(self) -> None:
        pass


def open_progress_view() -> ProgressView:
    """Return a bar if stderr is a terminal that can redraw a line, and plain lines otherwise."""
    if not current_group().is_first:
        return HiddenView()
    return BarView() if is_terminal(sys.stderr) and not _is_notebook_cell() else LineView()


def _is_notebook_cell() -> bool:
    """Return whether a cell of Jupyter started this command: its terminal shows control codes as text or ignores them.

    `!command` in a cell runs in a pseudo terminal. jupyter_client sets the variable for kernels.
    """
    return "JPY_PARENT_PID" in os.environ


def format_duration(seconds: float) -> str:
    """Format a duration as 42s, 3m 05s or 2h 10m."""
    total = max(0, round(seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    return f"{total // 3600}h {total % 3600 // 60:02d}m"
