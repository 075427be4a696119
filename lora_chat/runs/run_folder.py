"""Names, writes and reads every file that a run leaves."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_chat.config.load import format_recipe_yaml
from lora_chat.config.plan import Plan
from lora_chat.config.recipe import QuantizationSection, Recipe
from lora_chat.errors import IntegrityError, RecipeError, explain_write_errors
from lora_chat.system.atomic_write import (
    atomic_output_file,
    fsync_path,
    is_temporary_file,
    make_parents,
    write_text_atomically,
)
from lora_chat.system.bounded_files import MAX_LOG_BYTES, read_json_lines, read_json_object, read_text
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.shared_folders import check_run_location
from lora_chat.system.user_path import expand_user_path

_RECORDED_LIBRARIES = (
    "lora-chat",
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "tokenizers",
)


@dataclass(frozen=True)
class RunFolder:
    """One execution: `runs/<name>-<n>/`, never used twice."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """Every number resolved."""
        return self.path / "plan.json"

    @property
    def estimate(self) -> Path:
        """What was planned of memory and time."""
        return self.path / "forecast.json"

    @property
    def versions(self) -> Path:
        """Versions of the libraries."""
        return self.path / "versions.json"

    @property
    def identity(self) -> Path:
        """What decides what is trained, as digests and settings."""
        return self.path / "identity.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Whole copies of training under way."""
        return self.path / "checkpoints"

    @property
    def plot(self) -> Path:
        """The course of the loss."""
        return self.path / "loss.png"

    @property
    def adapter(self) -> Path:
        """The adapter in PEFT's layout."""
        return self.path / "adapter"

    @property
    def validation(self) -> Path:
        """The held-out dialogues."""
        return self.path / "validation.jsonl"

    @property
    def validation_blocks(self) -> Path:
        """The ids of held-out blocks of plain text, if there are any."""
        return self.path / "validation_blocks.jsonl"

    @property
    def statistics(self) -> Path:
        """The ledger of the data."""
        return self.path / "data.json"

    @property
    def audit(self) -> Path:
        """What an audit of the data found, masked."""
        return self.path / "audit.json"

    @property
    def redacted(self) -> Path:
        """The training dialogues with marks in place of secrets, if the recipe asks for that."""
        return self.path / "redacted.jsonl"

    @property
    def questions(self) -> Path:
        """The held-out questions, if the recipe has any."""
        return self.path / "questions.jsonl"

    @property
    def comparison(self) -> Path:
        """Base against adapted."""
        return self.path / "comparison.json"

    @property
    def result(self) -> Path:
        """What `sft --json` prints."""
        return self.path / "result.json"

    @property
    def proof(self) -> Path:
        """What plain PEFT makes of the adapter, once it was packed."""
        return self.path / "proof.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events, when asked for."""
        return self.path / "tensorboard"

    def restrict_permissions(self) -> None:
        """Close a folder of an older version to other users; one that is not ours stays as it is."""
        with suppress(OSError):
            self.path.chmod(0o700)

    def delete_partial_files(self) -> None:
        """Delete what a process that was killed had half written."""
        with explain_write_errors(self.path, "the run folder"):
            for folder in self.path.glob(f".{self.adapter.name}-*"):
                if folder.is_dir():
                    shutil.rmtree(folder)
            for folder in (self.path, self.checkpoints):
                for path in folder.iterdir() if folder.is_dir() else ():
                    if is_temporary_file(path) and path.is_file():
                        path.unlink()

    def delete(self, path: Path) -> None:
        """Delete a file of the run, if it exists. Raises DiskError or RecipeError if the system refuses."""
        with explain_write_errors(path, "the run folder"):
            path.unlink(missing_ok=True)

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of the run, whole or not at all."""
        write_text_atomically(path, text, "a file of the run")

    def write_json(self, path: Path, value: Any) -> None:
        """Write a JSON file of the run."""
        self.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_lines(self, path: Path, rows: Iterable[Any]) -> None:
        """Write JSON lines of the run, one row at a time."""
        with atomic_output_file(path, "a file of the run") as file:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in rows)

    def read_lines(self, path: Path) -> list[Any]:
        """The rows of a file of JSON lines that this run has written."""
        return list(read_json_lines(path, MAX_LOG_BYTES))

    def read_result(self) -> dict[str, Any]:
        """What `sft` found in the end."""
        found: dict[str, Any] = read_json_object(self.result)
        return found

    def read_parity_report(self) -> dict[str, Any]:
        """The proof of the adapter, with the digest of its weights."""
        found: dict[str, Any] = read_json_object(self.proof)
        return found

    def read_plan(self) -> Plan:
        """The plan this run was made with."""
        try:
            return Plan.model_validate_json(read_text(self.plan))
        except ValueError as error:
            raise IntegrityError(f"{self.plan} is damaged: {error}") from error

    def read_quantization(self) -> QuantizationSection:
        """How the base was held in training; what is done with the run later holds it the same way."""
        trained = self.read_plan().precision
        return QuantizationSection(mode=trained.mode, double_quantization=trained.double_quantization)


def create_run_folder(recipe: Recipe, plan: Plan, begin: Callable[[RunFolder], None]) -> RunFolder:
    """Make the next free `<name>-<n>` and write recipe, plan and versions into it.

    `begin` is called with the empty folder, which is no run yet. Raises RecipeError or DiskFullError if something
    cannot be written.
    """
    parent = expand_user_path(recipe.output.directory, "output.directory: ").absolute()
    name = recipe.output.name or "run"
    with explain_write_errors(parent, "the run folder"):
        make_parents(parent / name)
        run = RunFolder(_create_next_folder(parent, name))
    try:
        check_run_location(run.path)
    except RecipeError:
        run.path.rmdir()
        raise
    try:
        begin(run)
        write_run_description(run, recipe, plan)
        with explain_write_errors(run.path, "the run folder"):
            fsync_path(parent)
    except BaseException:
        delete_run(run)
        raise
    return run


def write_run_description(run: RunFolder, recipe: Recipe, plan: Plan) -> None:
    """Write recipe, plan and versions into a run's folder."""
    run.write_text(run.recipe, format_recipe_yaml(recipe))
    run.write_text(run.plan, plan.model_dump_json(indent=2) + "\n")
    run.write_json(run.versions, read_library_versions())


def delete_run(run: RunFolder) -> None:
    """Delete a run in which nothing was trained, and the folder of runs if it was the only one."""
    shutil.rmtree(run.path, ignore_errors=True)
    with suppress(OSError):
        run.path.parent.rmdir()


def find_newest_run(recipe: Recipe) -> RunFolder | None:
    """The run of a recipe's name with the highest number."""
    parent = expand_user_path(recipe.output.directory, "output.directory: ").absolute()
    numbers = _find_numbered_folders(parent, recipe.output.name or "run") if parent.is_dir() else {}
    runs = [path for _, path in sorted(numbers.items()) if is_run_folder(path)]
    return RunFolder(runs[-1]) if runs else None


def _find_numbered_folders(parent: Path, name: str) -> dict[int, Path]:
    pattern = re.compile(re.escape(name) + r"-([0-9]{1,9})")
    return {int(m[1]): p for p in parent.iterdir() if (m := pattern.fullmatch(p.name))}


def _create_next_folder(parent: Path, name: str) -> Path:
    number = max(_find_numbered_folders(parent, name), default=0) + 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir(mode=0o700)  # it holds what people wrote
            return path
        except FileExistsError:  # another run took it in this moment
            number += 1


def open_run_folder(path: str | Path) -> RunFolder:
    """The run at a path; raises RecipeError if there is none, IntegrityError if it holds links or special files."""
    run = RunFolder(expand_user_path(path))
    if not run.path.exists():
        raise RecipeError(f"There is no run {path}.{_format_runs_hint(run.path.parent)}")
    if not is_run_folder(run.path):
        raise RecipeError(f"{path} is not a run: it has no plan.json.{_format_runs_hint(run.path.parent)}")
    check_received_folder(run.path)
    return run


def is_run_folder(path: Path) -> bool:
    """Whether a path is a run folder; its files may yet be links, which are refused where it is opened."""
    return os.path.lexists(path / "plan.json") and os.path.lexists(path / "recipe.yaml")


def _format_runs_hint(parent: Path) -> str:
    try:
        runs = [p for p in parent.iterdir() if is_run_folder(p)]
    except OSError:
        return ""
    return f" Runs here: {', '.join(sorted(str(p) for p in runs)[:5])}." if runs else ""


@cache
def read_library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide a run's numbers."""
    import platform

    found = {"python": platform.python_version()}
    for name in _RECORDED_LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
