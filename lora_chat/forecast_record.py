"""What was planned against what it took, for one run and over all: the record that a plan is to be judged by."""

from pathlib import Path
from typing import Any

from lora_chat.errors import RecipeError
from lora_chat.forecast_view import duration, gib
from lora_chat.planning.forecast import Forecast
from lora_chat.run_folder import is_run, open_run_folder
from lora_chat.system.sanitize import visible


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
    runs = [open_run_folder(path) for path in paths]
    results = [(run.path.name, run.read_result()) for run in runs if run.result.is_file()]
    records = [{"run": name, **result["forecast"]} for name, result in results if result.get("forecast")]
    if not records:
        raise RecipeError(f"No finished run in {folder} has a forecast yet. Each that `sft` finishes keeps one.")
    return records


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
