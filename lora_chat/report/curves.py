"""The curves of loss and learning rate, read from the metrics of a run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_chat.report.values import as_number
from lora_chat.system.bounded_files import read_bytes

_MAX_BYTES = 64 << 20
"""Largest size, in bytes, of a metrics file; a row of a step has about 200 bytes."""
_MAX_LINES = 1_000_000
_MAX_LINE_BYTES = 10_000
_NAMES = ("loss", "validation_loss", "learning_rate", "gradient_norm")

Point = tuple[float, float]
"""A step and a value."""


@dataclass(frozen=True)
class Curves:
    """The values of each step."""

    points: Mapping[str, tuple[Point, ...]]
    """Points of each curve that has any, by its name in the metrics file."""
    last_step: int
    note: str | None
    """Sentence on lines that were not read; None if all were."""

    def find(self, name: str) -> tuple[Point, ...]:
        """Return the points of a curve; none if it is missing."""
        return self.points.get(name, ())


def read_curves(path: Path) -> Curves:
    """Read the curves of a metrics file up to its first damaged line. Raise IntegrityError or FileNotFoundError."""
    curves: dict[str, list[Point]] = {name: [] for name in _NAMES}
    lines = read_bytes(path, _MAX_BYTES).split(b"\n", _MAX_LINES)
    note = None
    if len(lines) > _MAX_LINES:
        note = f"Only the first {_MAX_LINES:,} lines of {path.name} are drawn."
        del lines[_MAX_LINES:]
    last_step = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _parse_row(line)
        step = as_number(row.get("step")) if row is not None else None
        if row is None or step is None:
            note = f"{path.name} is damaged at line {number}; the curves end there."
            break
        last_step = max(last_step, int(step))
        for name, points in curves.items():
            if (value := as_number(row.get(name))) is not None:
                points.append((step, value))
    return Curves({name: tuple(points) for name, points in curves.items() if points}, last_step, note)


def _parse_row(line: bytes) -> dict[str, object] | None:
    """Return the object of a line, or None if it is damaged."""
    try:
        row = json.loads(line) if len(line) <= _MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def smooth(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Return the moving average, over a tenth of the steps, at least 5 and at most 101."""
    width = min(101, max(5, len(points) // 10))
    if len(points) < width:
        return ()
    half = width // 2
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    averages: list[Point] = []
    for i, (step, _) in enumerate(points):
        start, end = max(0, i - half), min(len(points), i + half + 1)
        averages.append((step, (sums[end] - sums[start]) / (end - start)))
    return tuple(averages)


def thin(points: tuple[Point, ...], limit: int = 600) -> tuple[Point, ...]:
    """Return at most about `limit` points: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(points) <= limit:
        return points
    size = -(-len(points) // (limit // 2))
    extremes: list[Point] = [points[0]]
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        lowest = min(stretch, key=lambda point: point[1])
        highest = max(stretch, key=lambda point: point[1])
        extremes += sorted({lowest, highest})
    extremes.append(points[-1])
    return tuple(dict.fromkeys(extremes))
