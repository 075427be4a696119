"""Part `plan`: estimated against measured memory and time of six settings, and a run that has to step down."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from check_records import Records, seconds_left
from check_sizes import CheckSize, PlanSetting
from child_command import is_rehearsal, write_base
from part_arguments import read_part_arguments
from turn_processes import TurnProcess

_MEMORY_TOLERANCE = 0.10
"""Largest relative difference of estimated and measured memory that passes."""
_MIB = 2**20
_RESERVE_SECONDS = 5.0


def main() -> None:
    """Prepare as many settings as there are processors for, and let them train in turns."""
    size, work = read_part_arguments()
    records = Records()
    for name, shape in size.speed_shapes.items():
        if not (work / f"speed-{name}" / "config.json").is_file():
            write_base(work / f"speed-{name}", shape.base, shape.changes, weights=False)
    settings: list[PlanSetting | None] = [*size.plan_settings, None]
    group = max(1, min(len(settings), (os.cpu_count() or 1) // 2))
    while settings:
        batch, settings = settings[:group], settings[group:]
        processes = [(setting, start(size, work, setting)) for setting in batch]
        for _, process in processes:
            process.receive(seconds_left() - _RESERVE_SECONDS)  # preparing
        for _, process in processes:
            if not process.error:
                process.receive(seconds_left() - _RESERVE_SECONDS)  # ready
        for setting, process in processes:
            outcome = None
            if not process.error:
                process.go()
                outcome = process.receive(seconds_left() - _RESERVE_SECONDS)
            process.stop()
            if setting is None:
                record_step_down(records, outcome, process.error)
            else:
                record(records, setting, outcome, process.error)


def start(size: CheckSize, work: Path, setting: PlanSetting | None) -> TurnProcess:
    """Start the process of a setting on its emulated card."""
    shape = size.step_down[0] if setting is None else setting.shape
    text = json.dumps(None if setting is None else asdict(setting))
    limits = () if setting is None else ("--memory", str(setting.card))
    return TurnProcess(text, ["plan_setting.py", text, size.name, str(work / f"speed-{shape}")], limits=limits)


def describe(setting: PlanSetting) -> str:
    """Return the name of a setting in the table."""
    path = "fast" if setting.fast else "stock"
    card = f"{setting.card / 2**30:g} GiB"
    return f"{setting.shape} {setting.mode} {path} {setting.rows} x {setting.length}, {card}" + (
        ", checkpointed" if setting.checkpointed else ""
    )


def record(records: Records, setting: PlanSetting, outcome: dict[str, Any] | None, error: str) -> None:
    """Record one setting: a verdict of `fits` must not run out of memory, and the figures must agree."""
    name = describe(setting)
    if not records.check(name, outcome is not None, error) or outcome is None:
        return
    ran, verdict = not outcome.get("out_of_memory"), outcome["verdict"]
    records.check(f"verdict, {name}", not (verdict == "fits" and not ran), f"{verdict}, and it ran out of memory")
    figures: dict[str, Any] = {"verdict": verdict, "ran": ran, "planned_mib": round(outcome["planned"] / _MIB)}
    if ran:
        off = outcome["planned"] / outcome["reserved"] - 1
        figures |= {
            "reserved_mib": round(outcome["reserved"] / _MIB),
            "allocated_mib": round(outcome["allocated"] / _MIB),
            "off": off,
            "step_seconds": outcome["step_seconds"],
            "planned_step": outcome.get("planned_step"),
            "notes": outcome["notes"],
        }
        if not is_rehearsal():  # an emulated card has neither an allocator nor a speed
            records.check(f"memory, {name}", abs(off) <= _MEMORY_TOLERANCE, f"planned {off:+.1%} of the measured bytes")
            check_time(records, name, outcome)
    records.add_figures(name, **figures)


def check_time(records: Records, name: str, outcome: dict[str, Any]) -> None:
    """Check that the seconds of a step are in the planned range."""
    if outcome.get("planned_step"):
        _, low, high = outcome["planned_step"]
        seconds = outcome["step_seconds"]
        records.check(
            f"time, {name}", low <= seconds <= high, f"{seconds:.3f} s a step, planned {low:.3f} to {high:.3f}"
        )


def record_step_down(records: Records, outcome: dict[str, Any] | None, error: str) -> None:
    """Record whether training lowered a micro-batch that did not fit."""
    name = "smaller micro-batch after running out of memory"
    if records.check(name, outcome is not None, error) and outcome is not None:
        records.check(f"{name}, lowered", outcome["trained"] < outcome["asked"], f"trained {outcome['trained']}")
        records.add_figures(name, **outcome)


if __name__ == "__main__":
    main()
