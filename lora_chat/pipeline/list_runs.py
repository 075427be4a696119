"""The runs in a folder, read from their small files only, without trust and without PyTorch."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from lora_chat.config.bundled_recipes import find_recipe
from lora_chat.config.load import read_recipe
from lora_chat.errors import LoraChatError, UsageError, first_line
from lora_chat.report.run_files import RunFiles, read_run_files
from lora_chat.report.values import as_count, as_list, as_object, as_text, find_value
from lora_chat.runs.checkpoints import find_newest_step
from lora_chat.runs.lock import is_in_use
from lora_chat.runs.origin import has_own_signature
from lora_chat.runs.run_folder import RunFolder, is_run_folder
from lora_chat.sharing.container import PARCEL_SUFFIX, read_first_member
from lora_chat.system.bounded_files import parse_bounded_json
from lora_chat.system.console import quote_path
from lora_chat.system.folder_size import measure_bytes
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.user_path import expand_user_path

RunState = Literal["finished", "interrupted", "in use", "damaged"]
DEFAULT_FOLDER = "runs"
_FILES = ("plan", "data", "estimate", "result")
_RUN_ENTRIES = ("plan.json", "recipe.yaml", "result.json", "metrics.jsonl", "checkpoints", "adapter")
"""Names of which each run has several; a folder with two of them was a run."""
_MAX_RUNS = 10_000
_MAX_SHOWN_DATA = 2
"""Largest number of data files that are named."""


@dataclass(frozen=True)
class ListedRun:
    """A run, or the remains of one."""

    path: Path
    state: RunState
    size: int
    """Bytes of all its files."""
    changed: float
    """Time of the last result, plan or metrics, in seconds since 1970."""
    problem: str | None = None
    """Sentence that says what is damaged."""
    base: str | None = None
    data: str | None = None
    """Names of the training data."""
    dialogues: int | None = None
    """Number of training dialogues."""
    verdict: str | None = None
    verdict_text: str | None = None
    steps: int | None = None
    """Number of trained steps; of an interrupted run, the step of its newest checkpoint."""
    planned_steps: int | None = None
    signed_by_you: bool = False
    command: str | None = None
    """Command line that continues an interrupted run."""

    def as_dict(self) -> dict[str, object]:
        """Return the run for JSON."""
        return {**asdict(self), "path": str(self.path), "changed": format_time(self.changed, "seconds")}


@dataclass(frozen=True)
class ListedParcel:
    """A parcel, whose content is not verified."""

    path: Path
    size: int
    changed: float
    base: str | None
    """Name of the base that its receipt states."""

    def as_dict(self) -> dict[str, object]:
        """Return the parcel for JSON."""
        return {**asdict(self), "path": str(self.path), "changed": format_time(self.changed, "seconds")}


@dataclass(frozen=True)
class RunList:
    """The runs and the parcels of a folder, newest first."""

    folder: Path
    runs: tuple[ListedRun, ...]
    parcels: tuple[ListedParcel, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the list for JSON."""
        return {
            "folder": str(self.folder.absolute()),
            "runs": [run.as_dict() for run in self.runs],
            "parcels": [parcel.as_dict() for parcel in self.parcels],
        }


def list_runs(source: str | None) -> RunList:
    """Return the runs in a folder, in the output folder of a recipe, or by default in `runs`; a run lists itself.

    Raise UsageError if a named folder does not exist.
    """
    folder = find_runs_folder(source)
    if is_run_folder(folder):
        return RunList(folder, (read_listed_run(folder),), ())
    try:
        entries = sorted(folder.iterdir())[:_MAX_RUNS]
    except FileNotFoundError:
        entries = []
    except OSError as error:
        raise UsageError(f"Cannot list {folder}: {error.strerror}. Fix: name another folder.") from error
    runs = [read_listed_run(path) for path in entries if _looks_like_run(path)]
    parcels = [_read_listed_parcel(path) for path in entries if _looks_like_parcel(path)]
    return RunList(
        folder,
        tuple(sorted(runs, key=lambda run: -run.changed)),
        tuple(sorted(parcels, key=lambda parcel: -parcel.changed)),
    )


def find_runs_folder(source: str | None) -> Path:
    """Return the folder of runs that a user names: a folder, or a recipe, whose output folder is meant."""
    if source is None:
        return Path(DEFAULT_FOLDER)
    path = expand_user_path(source)
    if path.is_dir():
        return path
    if path.is_file() or find_recipe(source) != path:
        return expand_user_path(read_recipe(source).output.directory, "output.directory: ")
    raise UsageError(f"There is no folder {source}. Fix: name a folder with runs, or a recipe.")


def read_listed_run(path: Path) -> ListedRun:
    """Return a run as it is listed. Files of any content are accepted; links and special files are not opened."""
    run = RunFolder(path)
    size, changed = measure_bytes(path), _find_last_change(run)
    try:
        check_received_folder(path)
        if not is_run_folder(path):
            missing = next(file.name for file in (run.plan, run.recipe) if not os.path.lexists(file))
            return ListedRun(path, "damaged", size, changed, f"{missing} is missing")
        files = read_run_files(run, _FILES)
        state, problem = _find_state(run, files)
        checkpoint = find_newest_step(run.checkpoints)
        is_own = has_own_signature(run)
    except (LoraChatError, OSError) as error:
        return ListedRun(path, "damaged", size, changed, first_line(error))
    plan, result = files.read("plan"), files.read("result")
    return ListedRun(
        path=path,
        state=state,
        size=size,
        changed=changed,
        problem=problem,
        base=as_text(find_value(plan, "base", "name")),
        data=_name_data(find_value(plan, "data", "train")),
        dialogues=as_count(files.read("data").get("train_dialogues")),
        verdict=as_text(find_value(result, "verdict", "word")),
        verdict_text=as_text(find_value(result, "verdict", "text")),
        steps=as_count(result.get("steps")) if result else checkpoint,
        planned_steps=as_count(result.get("planned_steps")) or as_count(files.read("estimate").get("steps")),
        signed_by_you=is_own,
        command=_format_resume(run) if state == "interrupted" else None,
    )


def format_time(seconds: float, timespec: str = "minutes") -> str:
    """Return a time of this machine's time zone as `2026-01-31 18:30`; with `seconds` in ISO 8601 with the zone."""
    try:
        time = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):  # a file system may give any number
        return "unknown"
    return time.isoformat(timespec="seconds") if timespec == "seconds" else time.strftime("%Y-%m-%d %H:%M")


def _find_state(run: RunFolder, files: RunFiles) -> tuple[RunState, str | None]:
    """Return the state of a run, and the sentence on its damage."""
    if files.damage:
        return "damaged", next(iter(files.damage.values()))
    if not files.read("plan"):
        return "damaged", f"{run.plan.name} is empty"
    if run.result.is_file():
        weights = run.adapter / "adapter_model.safetensors"
        return ("finished", None) if weights.is_file() else ("damaged", "the adapter is missing")
    return ("in use", None) if is_in_use(run.path) else ("interrupted", None)


def _format_resume(run: RunFolder) -> str:
    """Return the command that continues a run with its own recipe."""
    return f"lora-chat sft {quote_path(run.recipe)} --resume {quote_path(run.path)}"


def _looks_like_run(path: Path) -> bool:
    """Return whether a folder is a run, or was one."""
    if not path.is_dir() or path.name.startswith("."):
        return False
    try:
        return sum(os.path.lexists(path / name) for name in _RUN_ENTRIES) > 1
    except OSError:
        return False


def _looks_like_parcel(path: Path) -> bool:
    return path.suffix == PARCEL_SUFFIX and path.is_file() and not path.is_symlink()


def _read_listed_parcel(path: Path) -> ListedParcel:
    """Return a parcel with the base that it states; nothing is verified."""
    try:
        receipt: Mapping[str, object] = as_object(parse_bounded_json(read_first_member(path).decode()))
    except (LoraChatError, OSError, ValueError):
        receipt = {}
    status = path.lstat()
    return ListedParcel(path, status.st_size, status.st_mtime, as_text(find_value(receipt, "base", "base")))


def _find_last_change(run: RunFolder) -> float:
    """Return the time of the newest of result, metrics and plan; 0 without these."""
    times = [0.0]
    for path in (run.result, run.metrics, run.plan):
        try:
            times.append(path.lstat().st_mtime)
        except OSError:
            continue
    return max(times)


def _name_data(sources: object) -> str | None:
    """Return short names of the training data of a plan."""
    names = [_name_source(source) for source in (sources if isinstance(sources, list) else [sources])]
    shown = [shlex.quote(name) if " " in name else name for name in names if name]
    more = len(shown) - _MAX_SHOWN_DATA
    return ", ".join([*shown[:_MAX_SHOWN_DATA], *([f"{more} more"] if more > 0 else [])]) or None


def _name_source(source: object) -> str | None:
    """Return the last part of a path, or the name of a data set on the hub."""
    if isinstance(source, dict):
        paths = as_list(source.get("path")) or [source.get("path")]
        return as_text(source.get("hub")) or _name_source(paths[0])
    text = as_text(source)
    return Path(text).name or text if text else None
