"""`lora-chat runs`: list the runs in a folder."""

import argparse
from typing import TYPE_CHECKING

from lora_chat.system.console import display_path, format_bytes, print_json, print_message, print_result
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from lora_chat.pipeline.list_runs import ListedRun, RunList

_HEAD = ("RUN", "STATE", "VERDICT", "BASE", "DATA", "STEPS", "SIZE", "CHANGED")
_RIGHT = (5, 6)
_NOTHING = "-"
_MAX_CHARACTERS = 32
"""Largest number of characters of a base or of the names of data."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `runs`."""
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help="a folder with runs, or a recipe, whose output folder is listed (runs)"
    )


def run(options: argparse.Namespace) -> None:
    """List the runs and parcels in a folder, newest first, with base, data, verdict and state."""
    from lora_chat.pipeline.list_runs import list_runs

    listed = list_runs(options.folder)
    if options.json:
        print_json(listed.as_dict())
        return
    for line in _format_list(listed):
        print_result(line)
    print_message(_format_summary(listed))


def _format_list(listed: "RunList") -> list[str]:
    """Return the lines of the table, and after a run with something to do or to know a line that says it."""
    from lora_chat.pipeline.list_runs import format_time
    from lora_chat.system.text_table import align_columns

    rows = [_format_run(run) for run in listed.runs]
    rows += [
        [
            parcel.path.name,
            "parcel, not verified",
            _NOTHING,
            sanitize_line(parcel.base or _NOTHING, _MAX_CHARACTERS),
            _NOTHING,
            _NOTHING,
            format_bytes(parcel.size),
            format_time(parcel.changed),
        ]
        for parcel in listed.parcels
    ]
    if not rows:
        return []
    head, *lines = align_columns([_HEAD, *rows], right=_RIGHT)
    for number, run in enumerate(listed.runs):
        if run.command:
            lines[number] += f"\n    continue: {run.command}"
        elif run.problem:
            lines[number] += f"\n    {run.problem}"
    return [head, *lines]


def _format_run(run: "ListedRun") -> list[str]:
    """Return the cells of a run."""
    from lora_chat.pipeline.list_runs import format_time

    state = str(run.state)
    if run.state == "interrupted":
        state += f" at step {run.steps}" if run.steps is not None else ", no checkpoint"
    if not run.signed_by_you and run.state != "damaged":
        state += ", not yours"
    dialogues = f" ({run.dialogues:,})" if run.dialogues is not None else ""
    steps = _NOTHING if run.steps is None else f"{run.steps:,}"
    return [
        run.path.name,
        state,
        run.verdict or _NOTHING,
        sanitize_line(run.base or _NOTHING, _MAX_CHARACTERS),
        f"{sanitize_line(run.data, _MAX_CHARACTERS)}{dialogues}" if run.data else _NOTHING,
        f"{steps}/{run.planned_steps:,}" if run.planned_steps is not None else steps,
        format_bytes(run.size),
        format_time(run.changed),
    ]


def _format_summary(listed: "RunList") -> str:
    """Return the number of runs and their size; without runs, the way to one."""
    folder = display_path(listed.folder.absolute())
    if not listed.runs and not listed.parcels:
        return f"There are no runs in {folder}. Fix: lora-chat sft quickstart, or name another folder."
    size = sum(run.size for run in listed.runs)
    counts = [_format_count(len(listed.runs), "run")]
    counts += [_format_count(len(listed.parcels), "parcel")] if listed.parcels else []
    return f"{', '.join(counts)} in {folder}, {format_bytes(size)}"


def _format_count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
