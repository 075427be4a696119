"""What a person sees of training: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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
            f"{self.tokens_per_second:.0f} supervised tokens/s  {clock(self.seconds_left)} left"
        )


class ProgressView(Protocol):
    """Shows the steps of one training."""

    def step(self, report: StepReport) -> None:
        """A step has ended."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def close(self) -> None:
        """Training has ended."""


class BarView:
    """A live line in a terminal, on stderr."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("first step ...", total=None)
        self._progress.start()

    def step(self, report: StepReport) -> None:
        self._progress.update(self._task, description=str(report), completed=report.step, total=report.steps)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class LineView:
    """A plain line now and then, for logs and pipes, on stderr."""

    def __init__(self) -> None:
        self._last = -_SECONDS_BETWEEN_LINES

    def step(self, report: StepReport) -> None:
        now = time.monotonic()
        if report.step in (1, report.steps) or now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            self.note(str(report))

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def open_view() -> ProgressView:
    """A bar if stderr is a terminal, else lines."""
    return BarView() if sys.stderr.isatty() else LineView()


def clock(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m 05s, 2h 10m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
