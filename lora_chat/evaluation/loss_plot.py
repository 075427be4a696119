"""The plot of training and validation loss."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_chat.evaluation.metrics import MetricFigures
from lora_chat.system.atomic_write import atomic_output_file
from lora_chat.system.bounded_files import MAX_LOG_BYTES, read_json_lines


def write_loss_plot(metrics: Path, path: Path, validation: MetricFigures | None) -> None:
    """Draw the training loss of each optimizer step and all validation losses.

    `validation` adds the losses of base and adapted model as first and last point.
    """
    # Matplotlib prefers a `matplotlibrc` in the working directory, which may be untrusted, to the user's. Its settings
    # can run programs (text.usetex) and import modules.
    with _outside_working_directory():
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    rows = list(read_json_lines(metrics, MAX_LOG_BYTES))
    training_points, validation_points = _points(rows, "loss"), _points(rows, "validation_loss")
    last = training_points[-1][0] if training_points else 0
    if validation:
        validation_points = [
            (0, validation["base"]),
            *(point for point in validation_points if point[0] < last),
            (last, validation["adapted"]),
        ]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if training_points:
            axes.plot(*zip(*training_points, strict=True), color="#9db4d0", linewidth=1, label="training, each step")
            axes.plot(
                *zip(*_smooth(training_points), strict=True), color="#1f4e8c", linewidth=2, label="training, smoothed"
            )
        if validation_points:
            axes.plot(*zip(*validation_points, strict=True), "o--", color="#c2571a", label="validation")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats per supervised token)")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_output_file(path, "the loss plot") as file:
            figure.savefig(file, dpi=120, format="png")


def _points(rows: list[object], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of the rows where both are numbers, because a received run may contain anything."""
    pairs = [(row.get("step"), row.get(key)) for row in rows if isinstance(row, dict)]
    return [(step, float(value)) for step, value in pairs if type(step) is int and isinstance(value, int | float)]


def _smooth(points: list[tuple[int, float]], width: int = 9) -> list[tuple[int, float]]:
    """Return the moving average over `width` steps."""
    half = width // 2
    losses = [loss for _, loss in points]
    windows = [losses[max(0, i - half) : i + half + 1] for i in range(len(losses))]
    return [(step, sum(window) / len(window)) for (step, _), window in zip(points, windows, strict=True)]


@contextmanager
def _outside_working_directory() -> Iterator[None]:
    """Change to the root folder while matplotlib is imported, because it reads settings from the working directory."""
    if "matplotlib" in sys.modules:
        yield
        return
    before = None
    with suppress(OSError):  # the folder may have been deleted
        before = os.getcwd()  # noqa: PTH109
    os.chdir(os.sep)
    try:
        yield
    finally:
        if before is not None:
            with suppress(OSError):
                os.chdir(before)
