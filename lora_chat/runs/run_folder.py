"""Names of all files of a run, and functions that read and write them."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_chat.config.plan import Plan, PrecisionPlan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import IntegrityError, UsageError, explain_write_errors
from lora_chat.system.atomic_write import (
    atomic_output_file,
    is_temporary_file,
    write_text_atomically,
)
from lora_chat.system.bounded_files import MAX_LOG_BYTES, read_json_lines, read_json_object, read_text
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.user_path import expand_user_path


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, `runs/<name>-<n>/`, which is never reused."""

    path: Path

    @property
    def recipe(self) -> Path:
        """Return the path of the resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """Return the path of the plan, in which every setting has a value."""
        return self.path / "plan.json"

    @property
    def estimate(self) -> Path:
        """Return the path of the estimate of memory and time."""
        return self.path / "forecast.json"

    @property
    def versions(self) -> Path:
        """Return the path of the versions of the libraries."""
        return self.path / "versions.json"

    @property
    def identity(self) -> Path:
        """Return the path of the digests and settings that decide what the run trains."""
        return self.path / "identity.json"

    @property
    def metrics(self) -> Path:
        """Return the path of the metrics, one JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def candidates(self) -> Path:
        """Return the folder of the weights of measured steps, from which the best is kept."""
        return self.path / "candidates"

    @property
    def validations(self) -> Path:
        """Return the path of the log of validation measurements during training, which exists if there are any."""
        return self.path / "validations.json"

    @property
    def plot(self) -> Path:
        """Return the path of the plot of the loss."""
        return self.path / "loss.png"

    @property
    def adapter(self) -> Path:
        """Return the folder of the adapter, in PEFT's layout."""
        return self.path / "adapter"

    @property
    def parent(self) -> Path:
        """Return the folder with a copy of the adapter of `adapter.start`, which exists if the recipe has one."""
        return self.path / "parent"

    @property
    def merged_base(self) -> Path:
        """Return the folder of the base with the parent merged into it, which exists if the recipe asks for it."""
        return self.path / "merged-base"

    @property
    def lineage(self) -> Path:
        """Return the path of the lineage, which exists if the adapter was trained on from another."""
        return self.path / "lineage.json"

    @property
    def generations(self) -> Path:
        """Return the path of the comparison of base, parent and child, which exists beside a lineage."""
        return self.path / "generations.json"

    @property
    def validation(self) -> Path:
        """Return the path of the held-out dialogues."""
        return self.path / "validation.jsonl"

    @property
    def validation_blocks(self) -> Path:
        """Return the path of the token ids of held-out blocks of plain text, which exists if there are any."""
        return self.path / "validation_blocks.jsonl"

    @property
    def test(self) -> Path:
        """Return the path of the test dialogues, which exists if the recipe has a test set."""
        return self.path / "test.jsonl"

    @property
    def test_blocks(self) -> Path:
        """Return the path of the token ids of test blocks of plain text, which exists if there are any."""
        return self.path / "test_blocks.jsonl"

    @property
    def held_out_files(self) -> tuple[Path, ...]:
        """Return the paths of the validation and test data, which exist if there is any."""
        return self.validation, self.validation_blocks, self.test, self.test_blocks

    @property
    def compared_files(self) -> tuple[Path, ...]:
        """Return the existing files of the comparison: those with test data if there is any, else validation data."""
        test = tuple(path for path in (self.test, self.test_blocks) if path.is_file())
        return test or tuple(path for path in (self.validation, self.validation_blocks) if path.is_file())

    @property
    def training_digests(self) -> Path:
        """Return the path of the digests by which training dialogues are recognised, without their text."""
        return self.path / "training_digests.safetensors"

    @property
    def statistics(self) -> Path:
        """Return the path of the statistics of the data."""
        return self.path / "data.json"

    @property
    def audit(self) -> Path:
        """Return the path of the masked audit report of the data."""
        return self.path / "audit.json"

    @property
    def redacted(self) -> Path:
        """Return the path of the redacted training dialogues, which exists if the recipe asks for them."""
        return self.path / "redacted.jsonl"

    @property
    def questions(self) -> Path:
        """Return the path of the held-out questions, which exists if the recipe has any."""
        return self.path / "questions.jsonl"

    @property
    def general(self) -> Path:
        """Return the path of the general items that both models answer, which exists if any are asked."""
        return self.path / "general.jsonl"

    @property
    def comparison(self) -> Path:
        """Return the path of the comparison of base and adapted model."""
        return self.path / "comparison.json"

    @property
    def judgements(self) -> Path:
        """Return the path of the votes of human judges, which exists if there are any."""
        return self.path / "judgements.jsonl"

    @property
    def report(self) -> Path:
        """Return the path of the report, a web page."""
        return self.path / "report.html"

    @property
    def result(self) -> Path:
        """Return the path of the result, which `sft --json` prints."""
        return self.path / "result.json"

    @property
    def parity_report(self) -> Path:
        """Return the path of the parity report of the adapter in plain PEFT, which exists after `pack`."""
        return self.path / "proof.json"

    @property
    def reference(self) -> Path:
        """Return the path of outputs of the adapted model, by which a loaded adapter is recognised."""
        return self.path / "reference.json"

    def restrict_permissions(self) -> None:
        """Deny other users access to a folder that an older version made; a folder of another user stays unchanged."""
        with suppress(OSError):
            self.path.chmod(0o700)

    def delete_partial_files(self) -> None:
        """Delete incomplete files that a killed process left."""
        with explain_write_errors(self.path, "the run folder"):
            for folder in self.path.glob(f".{self.adapter.name}-*"):
                if folder.is_dir():
                    shutil.rmtree(folder)
            for folder in (self.path, self.checkpoints, self.candidates):
                for path in folder.iterdir() if folder.is_dir() else ():
                    if is_temporary_file(path) and path.is_file():
                        path.unlink()

    def delete(self, path: Path) -> None:
        """Delete a file of the run, if it exists. Raise DiskError or UsageError if the system refuses."""
        with explain_write_errors(path, "the run folder"):
            path.unlink(missing_ok=True)

    def write_text(self, path: Path, text: str) -> None:
        """Write a text file of the run; a failure leaves the old file."""
        write_text_atomically(path, text, "a file of the run")

    def write_bytes(self, path: Path, content: bytes) -> None:
        """Write a binary file of the run; a failure leaves the old file."""
        with atomic_output_file(path, "a file of the run") as file:
            file.write(content)

    def write_json(self, path: Path, value: object) -> None:
        """Write a JSON file of the run."""
        self.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_lines(self, path: Path, rows: Iterable[object]) -> None:
        """Write JSON lines of the run, one row at a time."""
        with atomic_output_file(path, "a file of the run") as file:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in rows)

    def read_lines(self, path: Path) -> list[Any]:
        """Return the rows of a JSON Lines file of the run."""
        return list(read_json_lines(path, MAX_LOG_BYTES))

    def read_result(self) -> dict[str, Any]:
        """Return the result that `sft` wrote at its end."""
        result: dict[str, Any] = read_json_object(self.result)
        return result

    def read_comparison(self) -> dict[str, Any]:
        """Return the comparison of base and adapted model that the run wrote last."""
        comparison: dict[str, Any] = read_json_object(self.comparison)
        return comparison

    def read_parity_report(self) -> dict[str, Any]:
        """Return the parity report of the adapter, with the digest of its weights."""
        report: dict[str, Any] = read_json_object(self.parity_report)
        return report

    def read_plan(self) -> Plan:
        """Return the plan of the run."""
        try:
            return Plan.model_validate_json(read_text(self.plan))
        except ValueError as error:
            raise IntegrityError(f"{self.plan} is damaged: {error}") from error

    def read_precision(self) -> PrecisionPlan:
        """Return the precision of the base in training, from which later commands derive theirs."""
        return self.read_plan().precision


def find_newest_run(recipe: Recipe) -> RunFolder | None:
    """Return the run with the highest number among those with the recipe's name, or None."""
    parent = expand_user_path(recipe.output.directory, "output.directory: ").absolute()
    numbers = find_numbered_folders(parent, recipe.output.name or "run") if parent.is_dir() else {}
    runs = [path for _, path in sorted(numbers.items()) if is_run_folder(path)]
    return RunFolder(runs[-1]) if runs else None


def find_numbered_folders(parent: Path, name: str) -> dict[int, Path]:
    """Return the paths `<name>-<n>` in a folder by their numbers."""
    pattern = re.compile(re.escape(name) + r"-([0-9]{1,9})")
    return {int(m[1]): p for p in parent.iterdir() if (m := pattern.fullmatch(p.name))}


def open_run_folder(path: str | Path) -> RunFolder:
    """Return the run at a path. Raise UsageError if none exists, IntegrityError if it has links or special files."""
    run = RunFolder(expand_user_path(path))
    if not run.path.exists():
        raise UsageError(f"There is no run {path}.{format_runs_hint(run.path.parent)}")
    if not is_run_folder(run.path):
        raise UsageError(f"{path} is not a run: it has no plan.json.{format_runs_hint(run.path.parent)}")
    check_received_folder(run.path)
    return run


def is_run_folder(path: Path) -> bool:
    """Return whether a path is a run folder. Its files may be links, which `open_run_folder` refuses."""
    return os.path.lexists(path / "plan.json") and os.path.lexists(path / "recipe.yaml")


def format_runs_hint(parent: Path) -> str:
    """Return a sentence that names runs in a folder; empty without any."""
    try:
        runs = [p for p in parent.iterdir() if is_run_folder(p)]
    except OSError:
        return ""
    return f" Runs here: {', '.join(sorted(str(p) for p in runs)[:5])}." if runs else ""
