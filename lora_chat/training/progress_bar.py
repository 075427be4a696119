"""What a person sees of training: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from dataclasses import dataclass
from typing import Protocol

from lora_chat.system.bar import LiveBar
from lora_chat.system.console import is_terminal, print_message

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class StepReport:
    """One optimizer step."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    """Supervised tokens."""
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"step {self.step}/{self.steps}  loss {self.loss:.3f}  "
            f"{self.tokens_per_second:.0f} supervised tokens/s  {format_duration(self.seconds_left)} left"
        )


class ProgressView(Protocol):
    """Shows the steps of one training."""

    def show_step(self, report: StepReport) -> None:
        """A step has ended."""

    def close(self) -> None:
        """Training has ended."""


class BarView:
    """A live line in a terminal, on stderr."""

    def __init__(self) -> None:
        self._bar = LiveBar("first step ...")

    def show_step(self, report: StepReport) -> None:
        self._bar.update(str(report), report.step, report.steps)

    def close(self) -> None:
        self._bar.close()


class LineView:
    """A plain line now and then, for logs and pipes, on stderr."""

    def __init__(self) -> None:
        self._last = -_SECONDS_BETWEEN_LINES

    def show_step(self, report: StepReport) -> None:
        now = time.monotonic()
        if report.step in (1, report.steps) or now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            print_message(str(report))

    def close(self) -> None:
        pass


def open_progress_view() -> ProgressView:
    """A bar if stderr is a terminal, else lines."""
    return BarView() if is_terminal(sys.stderr) else LineView()


def format_duration(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m 05s, 2h 10m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
