"""What was planned against what it took, for one run and over all: the record that a plan is to be judged by."""

from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.format import format_duration, format_gib
from lora_chat.runs.run_folder import RunFolder, is_run_folder, open_run_folder
from lora_chat.system.sanitize import sanitize_line

_MAX_AMOUNT = 1e15
"""Bytes or seconds."""


def make_estimate_record(
    estimate: RunEstimate, peak_bytes: int, seconds: float, train_seconds: float, *, resumed: bool
) -> dict[str, Any]:
    """For the run's result; bytes and seconds. A resumed run's time is that of several processes."""
    total = estimate.total_time
    timed = total and estimate.durations and not resumed
    return {
        "base": estimate.base,
        "device": estimate.target.name,
        "quantization": estimate.plan.precision.mode,
        "planned": {
            "peak_bytes": estimate.peak,
            "seconds": total.likely if total and timed else None,
            "train_seconds": estimate.durations["train"].likely if estimate.durations and timed else None,
        },
        "measured": {
            "peak_bytes": peak_bytes,
            "seconds": seconds if timed else None,
            "train_seconds": train_seconds if timed else None,
        },
    }


def format_record(record: dict[str, Any]) -> str:
    """The line that `sft` ends with."""
    planned, measured = record["planned"], record["measured"]
    text = (
        f"Planned {format_gib(planned['peak_bytes'])} GiB, took {format_gib(measured['peak_bytes'])} GiB "
        f"({_format_deviation(planned['peak_bytes'], measured['peak_bytes'])})"
    )
    if planned["seconds"]:
        off = _format_deviation(planned["seconds"], measured["seconds"])
        text += f"; planned {format_duration(planned['seconds'])}, took {format_duration(measured['seconds'])} ({off})"
    return text


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of all finished runs in a folder of runs, the oldest first; raises RecipeError without any."""
    paths = sorted((path for path in folder.glob("*") if is_run_folder(path)), key=lambda path: path.stat().st_mtime)
    runs = [run for run in map(open_run_folder, paths) if run.result.is_file()]
    found = [(run.path.name, _read_record(run)) for run in runs]
    records = [{**record, "run": name} for name, record in found if record]
    if not records:
        raise RecipeError(f"No finished run in {folder} has a forecast yet. Each that `sft` finishes keeps one.")
    return records


def _read_record(run: RunFolder) -> dict[str, Any] | None:
    """The record of a run, if it has one. Raises IntegrityError for one that `sft` would not have written."""
    record: Any = run.read_result().get("forecast")
    if not record:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("quantization"), str):
        raise _damaged_error(run, "quantization")
    sides: list[Any] = [record.get(side) for side in ("planned", "measured")]
    if not all(isinstance(side, dict) and _is_amount(side.get("peak_bytes")) for side in sides):
        raise _damaged_error(run, "peak_bytes")
    times = [side.get("seconds") for side in sides]
    if times[0] is not None and not all(map(_is_amount, times)):
        raise _damaged_error(run, "seconds")
    return record


def _is_amount(value: Any) -> bool:
    """Whether it is a number of bytes or seconds that something can take; the planned one is divided by."""
    return type(value) in (int, float) and 0 < value < _MAX_AMOUNT


def _damaged_error(run: RunFolder, name: str) -> IntegrityError:
    return IntegrityError(f"{run.result} is damaged: `forecast.{name}` is not what `sft` writes.")


def format_history(records: list[dict[str, Any]]) -> str:
    """A table of planned against measured; the last lines say how far plans are off."""
    head = (
        f"{'run':<24}{'precision':>10}{'planned GiB':>13}{'took GiB':>10}{'off':>7}{'planned':>10}{'took':>9}{'off':>7}"
    )
    lines = [head]
    for record in records:
        planned, measured = record["planned"], record["measured"]
        peaks = planned["peak_bytes"], measured["peak_bytes"]
        name, mode = sanitize_line(record["run"]), sanitize_line(record["quantization"])
        line = f"{name:<24}{mode:>10}{format_gib(peaks[0]):>13}{format_gib(peaks[1]):>10}{_format_deviation(*peaks):>7}"
        if planned["seconds"]:
            times = planned["seconds"], measured["seconds"]
            line += f"{format_duration(times[0]):>10}{format_duration(times[1]):>9}{_format_deviation(*times):>7}"
        lines.append(line)
    for name, what in (("peak_bytes", "memory"), ("seconds", "time")):
        shares = [
            abs(record["measured"][name] / record["planned"][name] - 1) for record in records if record["planned"][name]
        ]
        if shares:
            lines.append(
                f"{what}: off by {max(shares):.0%} at worst, {sorted(shares)[len(shares) // 2]:.0%} in the middle"
            )
    return "\n".join(lines)


def _format_deviation(planned: float, measured: float) -> str:
    return f"{measured / planned - 1:+.0%}"
