"""Figures of lm-evaluation-harness for base and adapted model, side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

_STDERR = "_stderr"
_NO_FILTER = ",none"


@dataclass(frozen=True)
class HarnessFigure:
    """A metric of a task, with the standard errors that the harness estimates; None if it gives none."""

    base: float
    adapted: float
    base_stderr: float | None
    adapted_stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class HarnessTaskFigures:
    """The figures of a task or a group of tasks."""

    name: str
    items: int | None
    """Number of evaluated documents; None for a group."""
    figures: dict[str, HarnessFigure]

    @property
    def result_fields(self) -> dict[str, object]:
        """Return the fields of the JSON result."""
        return {"items": self.items, "figures": {name: asdict(figure) for name, figure in self.figures.items()}}


def pair_figures(base: Mapping[str, object], adapted: Mapping[str, object]) -> list[HarnessTaskFigures]:
    """Return the figures of two results of the harness, by task, without metrics that are not finite in both."""
    tables = [cast("Mapping[str, Mapping[str, object]]", result["results"]) for result in (base, adapted)]
    counts = cast("Mapping[str, Mapping[str, int]]", base.get("n-samples") or {})
    directions = cast("Mapping[str, Mapping[str, object]]", base.get("higher_is_better") or {})
    tasks = []
    for name, values in tables[0].items():
        others = tables[1].get(name, {})
        figures = {}
        for key in values:
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith(_STDERR):
                continue
            left, right = _read_number(values[key]), _read_number(others.get(key))
            if left is None or right is None:
                continue
            stderr_key = f"{metric}{_STDERR},{filter_name}"
            better = directions.get(name, {}).get(metric)
            figures[key.removesuffix(_NO_FILTER)] = HarnessFigure(
                left,
                right,
                _read_number(values.get(stderr_key)),
                _read_number(others.get(stderr_key)),
                better if isinstance(better, bool) else None,
            )
        tasks.append(HarnessTaskFigures(name, counts.get(name, {}).get("effective"), figures))
    return tasks


def _read_number(value: object) -> float | None:
    """Return a finite number, or None: the harness writes "N/A" for a standard error that it cannot estimate."""
    try:
        number = float(cast("float", value))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def format_figures(tasks: Sequence[HarnessTaskFigures]) -> str:
    """Return a table for the terminal."""
    rows = [("task", "metric", "items", "base", "adapted")]
    for task in tasks:
        for metric, figure in task.figures.items():
            rows.append(
                (
                    task.name,
                    metric,
                    "" if task.items is None else str(task.items),
                    _format_value(figure.base, figure.base_stderr),
                    _format_value(figure.adapted, figure.adapted_stderr),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _format_value(value: float, stderr: float | None) -> str:
    """Return a figure with its standard error."""
    return f"{value:.4g}" if stderr is None else f"{value:.4g} ± {stderr:.2g}"
