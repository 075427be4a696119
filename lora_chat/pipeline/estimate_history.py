"""What was planned against what it took, for one run and over all: the record that a plan is to be judged by."""

from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.planning.estimate import Forecast
from lora_chat.planning.format import duration, gib
from lora_chat.runs.run_folder import RunFolder, is_run, open_run_folder
from lora_chat.system.sanitize import visible

_MOST = 1e15
"""Bytes or seconds."""


def make_record(found: Forecast, peak: int, seconds: float, train: float, *, resumed: bool) -> dict[str, Any]:
    """For the run's result; bytes and seconds. A resumed run's time is that of several processes."""
    total = found.total_seconds
    timed = total and found.durations and not resumed
    return {
        "base": found.base,
        "device": found.target.name,
        "quantization": found.plan.precision.mode,
        "planned": {
            "peak_bytes": found.peak,
            "seconds": total.likely if total and timed else None,
            "train_seconds": found.durations["train"].likely if found.durations and timed else None,
        },
        "measured": {
            "peak_bytes": peak,
            "seconds": seconds if timed else None,
            "train_seconds": train if timed else None,
        },
    }


def record_text(record: dict[str, Any]) -> str:
    """The line that `sft` ends with."""
    planned, measured = record["planned"], record["measured"]
    text = (
        f"Planned {gib(planned['peak_bytes'])} GiB, took {gib(measured['peak_bytes'])} GiB "
        f"({_off(planned['peak_bytes'], measured['peak_bytes'])})"
    )
    if planned["seconds"]:
        off = _off(planned["seconds"], measured["seconds"])
        text += f"; planned {duration(planned['seconds'])}, took {duration(measured['seconds'])} ({off})"
    return text


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of all finished runs in a folder of runs, the oldest first; raises RecipeError without any."""
    paths = sorted((path for path in folder.glob("*") if is_run(path)), key=lambda path: path.stat().st_mtime)
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
        raise _damage(run, "quantization")
    sides: list[Any] = [record.get(side) for side in ("planned", "measured")]
    if not all(isinstance(side, dict) and _is_amount(side.get("peak_bytes")) for side in sides):
        raise _damage(run, "peak_bytes")
    times = [side.get("seconds") for side in sides]
    if times[0] is not None and not all(map(_is_amount, times)):
        raise _damage(run, "seconds")
    return record


def _is_amount(value: Any) -> bool:
    """Whether it is a number of bytes or seconds that something can take; the planned one is divided by."""
    return type(value) in (int, float) and 0 < value < _MOST


def _damage(run: RunFolder, name: str) -> IntegrityError:
    return IntegrityError(f"{run.result} is damaged: `forecast.{name}` is not what `sft` writes.")


def history_text(records: list[dict[str, Any]]) -> str:
    """A table of planned against measured; the last lines say how far plans are off."""
    head = (
        f"{'run':<24}{'precision':>10}{'planned GiB':>13}{'took GiB':>10}{'off':>7}{'planned':>10}{'took':>9}{'off':>7}"
    )
    lines = [head]
    for record in records:
        planned, measured = record["planned"], record["measured"]
        peaks = planned["peak_bytes"], measured["peak_bytes"]
        name, mode = visible(record["run"]), visible(record["quantization"])
        line = f"{name:<24}{mode:>10}{gib(peaks[0]):>13}{gib(peaks[1]):>10}{_off(*peaks):>7}"
        if planned["seconds"]:
            times = planned["seconds"], measured["seconds"]
            line += f"{duration(times[0]):>10}{duration(times[1]):>9}{_off(*times):>7}"
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


def _off(planned: float, measured: float) -> str:
    return f"{measured / planned - 1:+.0%}"
