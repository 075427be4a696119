"""The course of the loss as a picture."""

from pathlib import Path
from typing import Any

from lora_chat.evaluation.comparison import Pair
from lora_chat.system.atomic_write import file_written_whole
from lora_chat.system.bounded_files import LARGEST_LOG, read_json_lines
from lora_chat.system.working_directory import outside_working_directory


def write_loss_plot(metrics: Path, path: Path, validation: Pair | None) -> None:
    """Draw training loss per optimizer step, validation loss where measured, base and end as marks."""
    # A `matplotlibrc` in the working directory, perhaps a stranger's, comes before the user's own. Its settings run
    # programs (text.usetex) and name modules.
    with outside_working_directory():
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    rows = list(read_json_lines(metrics, LARGEST_LOG))
    train, held = _points(rows, "loss"), _points(rows, "validation_loss")
    last = train[-1][0] if train else 0
    if validation:
        held = [(0, validation.base), *(p for p in held if p[0] < last), (last, validation.adapted)]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if train:
            axes.plot(*zip(*train, strict=True), color="#9db4d0", linewidth=1, label="training, each step")
            axes.plot(*zip(*_smooth(train), strict=True), color="#1f4e8c", linewidth=2, label="training, smoothed")
        if held:
            axes.plot(*zip(*held, strict=True), "o--", color="#c2571a", label="validation")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats per supervised token)")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        with file_written_whole(path, "the loss plot") as file:
            figure.savefig(file, dpi=120, format="png")


def _points(rows: list[Any], key: str) -> list[tuple[int, float]]:
    """Pick (step, value) of the rows that have both as numbers; a received run may hold anything."""
    found = [(row.get("step"), row.get(key)) for row in rows if isinstance(row, dict)]
    return [(step, float(value)) for step, value in found if type(step) is int and isinstance(value, int | float)]


def _smooth(points: list[tuple[int, float]], width: int = 9) -> list[tuple[int, float]]:
    half = width // 2
    losses = [loss for _, loss in points]
    windows = [losses[max(0, i - half) : i + half + 1] for i in range(len(losses))]
    return [(step, sum(w) / len(w)) for (step, _), w in zip(points, windows, strict=True)]
