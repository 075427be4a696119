"""Estimated against measured memory and time, of one run and of all runs in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from typing_extensions import NotRequired, TypedDict

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.format import format_duration, format_gib
from lora_chat.planning.phase_time import PhaseDurations
from lora_chat.runs.run_folder import RunFolder, is_run_folder, open_run_folder
from lora_chat.system.sanitize import sanitize_line

_MAX_AMOUNT = 1e15
"""Largest plausible number of bytes or seconds."""


class RunFigures(TypedDict):
    """Peak memory and time of a run, estimated or measured; a time is None without an estimate."""

    peak_bytes: int
    seconds: float | None
    train_seconds: NotRequired[float | None]


class EstimateRecord(TypedDict):
    """The estimate of a run beside the measurements."""

    base: NotRequired[str]
    device: NotRequired[str]
    quantization: str
    planned: RunFigures
    measured: RunFigures
    run: NotRequired[str]
    """Name of the run, in a history of several."""


def make_estimate_record(
    estimate: RunEstimate, peak_bytes: int, seconds: float, train_seconds: float, *, resumed: bool
) -> EstimateRecord:
    """Return the record of a run for its result. A resumed run has no times, because several processes took them."""
    total = estimate.total_time
    is_timed = total and estimate.durations and not resumed
    return {
        "base": estimate.base,
        "device": estimate.target.name,
        "quantization": estimate.plan.precision.mode,
        "planned": {
            "peak_bytes": estimate.peak,
            "seconds": total.likely if total and is_timed else None,
            "train_seconds": _train_seconds(estimate.durations) if estimate.durations and is_timed else None,
        },
        "measured": {
            "peak_bytes": peak_bytes,
            "seconds": seconds if is_timed else None,
            "train_seconds": train_seconds if is_timed else None,
        },
    }


def _train_seconds(durations: PhaseDurations) -> float:
    """Return the likely seconds of training with its measurements of the validation set."""
    return sum(durations[name].likely for name in ("train", "validate") if name in durations)


def format_record(record: EstimateRecord) -> str:
    """Format the last line of `sft`."""
    planned, measured = record["planned"], record["measured"]
    text = (
        f"Planned {format_gib(planned['peak_bytes'])} GiB, took {format_gib(measured['peak_bytes'])} GiB "
        f"({_format_deviation(planned['peak_bytes'], measured['peak_bytes'])})"
    )
    if planned["seconds"] and measured["seconds"] is not None:
        deviation = _format_deviation(planned["seconds"], measured["seconds"])
        text += (
            f"; planned {format_duration(planned['seconds'])}, took {format_duration(measured['seconds'])} "
            f"({deviation})"
        )
    return text


def read_history(folder: Path) -> list[EstimateRecord]:
    """Return the records of all finished runs in a folder, the oldest first. Raise UsageError without any."""
    paths = sorted((path for path in folder.glob("*") if is_run_folder(path)), key=lambda path: path.stat().st_mtime)
    records: list[EstimateRecord] = [
        {**record, "run": run.path.name}
        for run in map(open_run_folder, paths)
        if run.result.is_file() and (record := _read_record(run))
    ]
    if not records:
        raise UsageError(f"No finished run in {folder} has an estimate. Every run that `sft` finishes has one.")
    return records


def _read_record(run: RunFolder) -> EstimateRecord | None:
    """Return the record of a run; None if it has none. Raise IntegrityError if `sft` would not have written it."""
    record: object = run.read_result().get("forecast")
    if not record:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("quantization"), str):
        raise _damaged_error(run, "quantization")
    sides = [record.get(side) for side in ("planned", "measured")]
    if not all(isinstance(side, dict) and _is_amount(side.get("peak_bytes")) for side in sides):
        raise _damaged_error(run, "peak_bytes")
    planned_seconds, measured_seconds = (side.get("seconds") if isinstance(side, dict) else None for side in sides)
    if planned_seconds is not None and not (_is_amount(planned_seconds) and _is_amount(measured_seconds)):
        raise _damaged_error(run, "seconds")
    return cast("EstimateRecord", record)


def _is_amount(value: object) -> bool:
    """Return whether a value is a plausible number of bytes or seconds; it is above 0 because it is a divisor."""
    return isinstance(value, int | float) and type(value) in (int, float) and 0 < value < _MAX_AMOUNT


def _damaged_error(run: RunFolder, name: str) -> IntegrityError:
    """Return the error for a field that `sft` would not have written."""
    return IntegrityError(f"{run.result} is damaged: `forecast.{name}` is not a value that `sft` writes.")


def format_history(records: Sequence[EstimateRecord]) -> str:
    """Format a table of estimates and measurements; the last lines show the deviations."""
    lines = [
        f"{'run':<24}{'precision':>10}{'planned GiB':>13}{'took GiB':>10}{'off':>7}{'planned':>10}{'took':>9}{'off':>7}"
    ]
    for record in records:
        planned, measured = record["planned"], record["measured"]
        peaks = planned["peak_bytes"], measured["peak_bytes"]
        name, mode = sanitize_line(record.get("run", "")), sanitize_line(record["quantization"])
        line = f"{name:<24}{mode:>10}{format_gib(peaks[0]):>13}{format_gib(peaks[1]):>10}{_format_deviation(*peaks):>7}"
        if planned["seconds"] and measured["seconds"]:
            times = planned["seconds"], measured["seconds"]
            line += f"{format_duration(times[0]):>10}{format_duration(times[1]):>9}{_format_deviation(*times):>7}"
        lines.append(line)
    return "\n".join([*lines, *_format_deviations(records, "peak_bytes"), *_format_deviations(records, "seconds")])


def _format_deviations(records: Sequence[EstimateRecord], key: Literal["peak_bytes", "seconds"]) -> list[str]:
    """Format the largest and the median deviation of all runs that have an estimate."""
    deviations = []
    for record in records:
        planned, measured = record["planned"][key], record["measured"][key]
        if planned and measured is not None:
            deviations.append(abs(measured / planned - 1))
    if not deviations:
        return []
    quantity = "memory" if key == "peak_bytes" else "time"
    return [f"{quantity}: off by up to {max(deviations):.0%}, median {sorted(deviations)[len(deviations) // 2]:.0%}"]


def _format_deviation(planned: float, measured: float) -> str:
    """Format the relative deviation of a measurement from its estimate."""
    return f"{measured / planned - 1:+.0%}"
