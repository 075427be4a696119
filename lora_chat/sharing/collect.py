"""Collect the figures and digests of a run for its receipt, without words of dialogues and names of folders."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pydantic import JsonValue, ValidationError

from lora_chat.config.data import BUNDLED_TEMPLATES
from lora_chat.config.load import read_recipe
from lora_chat.config.recipe import GENERAL_CHOICES
from lora_chat.errors import IntegrityError
from lora_chat.evaluation.metrics import METRICS
from lora_chat.evaluation.run_judgements import collect_run_judgements
from lora_chat.models.base_model import is_hub_id
from lora_chat.models.identity import Identity
from lora_chat.runs.run_folder import RunFolder
from lora_chat.sharing.evaluation_receipt import EvaluationReceipt, make_evaluation_receipt
from lora_chat.sharing.figures import ComparisonReceipt, DataReceipt, SourceReceipt, TrainingReceipt
from lora_chat.sharing.judgement_receipt import JudgementReceipt, make_judgement_receipt
from lora_chat.sharing.lineage import GenerationsReceipt, make_generations_receipt
from lora_chat.sharing.receipt import BaseReceipt, PrecisionReceipt, format_validation_error, public_base_name
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_json_object

_HUB_SOURCE_PATTERN = re.compile(r" at [0-9a-f]{12}$")


def make_base_receipt(identity: Identity) -> BaseReceipt:
    """Return the identity of a base without the folders of the machine that trained on it."""
    return BaseReceipt(**{**identity.model_dump(), "base": public_base_name(identity.base)})


def collect_precision(run: RunFolder) -> PrecisionReceipt:
    """Read the precision of the base in training from the plan of a run."""
    precision = run.read_plan().precision
    return PrecisionReceipt(
        mode=precision.mode,
        double_quantization=precision.double_quantization,
        dtype=precision.dtype,
        stored=precision.stored,
        coverage=precision.coverage,
    )


def collect_recipe(run: RunFolder, base: str) -> dict[str, JsonValue]:
    """Return the resolved recipe of a run with file names in place of paths, and without its output folder."""
    recipe: dict[str, Any] = read_recipe(str(run.recipe), []).model_dump(mode="json")
    recipe["base"]["name"] = base
    for name in ("device", "shard"):  # they describe the machine
        recipe["base"].pop(name)
    recipe["output"].pop("directory")
    data, evaluation, start = recipe["data"], recipe["evaluation"], recipe["adapter"].get("start")
    if start is not None and not is_hub_id(start):
        recipe["adapter"]["start"] = public_file_name(start)
    data["system"] = None  # the base of the receipt has the system message of all dialogues
    for key in ("train", "validation", "test"):
        data[key] = _public_sources(data[key])
    if data["template"] not in (None, *BUNDLED_TEMPLATES):
        data["template"] = public_file_name(data["template"])
    if evaluation["questions"]:
        evaluation["questions"] = public_file_name(evaluation["questions"])
    if evaluation["general"] not in GENERAL_CHOICES:
        evaluation["general"] = public_file_name(evaluation["general"])
    return {key: strip_folders(value) for key, value in recipe.items()}


def collect_data(run: RunFolder) -> DataReceipt:
    """Read the counts of the sources and of the audit, and the digests of the training and held-out data."""
    statistics, audit = _read_json(run.statistics), _read_json(run.audit)
    held_out = [path.read_bytes() for path in run.compared_files]
    rows = _read_identity(run).get("data.rows")
    with _refuse_malformed(run.statistics):
        sources = [
            SourceReceipt(
                name=source["name"] if _HUB_SOURCE_PATTERN.search(source["name"]) else public_file_name(source["name"]),
                weight=source["weight"],
                formats=tuple(sorted(set(source["files"].values()))),
                counts={key: value for key, value in source.items() if type(value) is int},
            )
            for source in statistics["sources"]
        ]
        return DataReceipt(
            rows=rows,
            held_out=hashlib.sha256(b"".join(held_out)).hexdigest() if held_out else None,
            train_dialogues=statistics["train_dialogues"],
            train_rows=statistics["train_rows"],
            validation_dialogues=statistics["validation_dialogues"] + statistics.get("test_dialogues", 0),
            duplicates=statistics["duplicates"],
            sources=tuple(sources),
            audit=audit.get("counts", {}),
        )


def collect_training(run: RunFolder) -> TrainingReceipt:
    """Read steps, tokens and seconds of a run. A run that was interrupted has only the last step of its log."""
    result = _read_json(run.result) if run.result.is_file() else {}
    rows = run.read_lines(run.metrics) if run.metrics.is_file() else []
    logged = [row for row in rows if isinstance(row, dict) and "step" in row]
    last = logged[-1] if logged else {}
    with _refuse_malformed(run.result if result else run.metrics):
        return TrainingReceipt(
            steps=int(result.get("steps") or last.get("step") or 0),
            planned_steps=result.get("planned_steps"),
            supervised_tokens=int(result.get("supervised_tokens") or 0),
            seconds=float(result.get("seconds", {}).get("train", 0)),
        )


def collect_comparison(run: RunFolder) -> ComparisonReceipt | None:
    """Read the comparison of base and adapted model; None without a finite loss, as in an interrupted run."""
    if not run.comparison.is_file():
        return None
    comparison = _read_json(run.comparison)
    with _refuse_malformed(run.comparison):
        figures = {
            metric.name: pair | {"questions": comparison["questions"]}
            if metric.is_share_of_questions and pair
            else pair
            for metric in METRICS
            if metric.name in ComparisonReceipt.model_fields
            for pair in [comparison[metric.name]]
        }
        if figures["validation_loss"] is None or not all(
            math.isfinite(value) for value in figures["validation_loss"].values()
        ):
            return None
        return ComparisonReceipt.model_validate({**figures, "validation_dialogues": comparison["validation_dialogues"]})


def collect_evaluation(run: RunFolder) -> EvaluationReceipt | None:
    """Read the verdict of the comparison and its figures; None in a run that has none."""
    if not run.comparison.is_file():
        return None
    comparison = _read_json(run.comparison)
    files = {"validation": (run.validation, run.validation_blocks), "test": (run.test, run.test_blocks)}
    with _refuse_malformed(run.comparison):
        present = (
            [path.read_bytes() for path in files[comparison["set"]] if path.is_file()] if "set" in comparison else []
        )
        digest = hashlib.sha256(b"".join(present)).hexdigest() if present else None
        result = _read_json(run.result) if run.result.is_file() else {}
        kept_step = (result["kept_step"], result["steps"]) if result.get("kept_step") is not None else None
        try:
            return make_evaluation_receipt(comparison, digest, kept_step)
        except ValidationError as error:
            raise IntegrityError(f"{run.comparison} is damaged: {format_validation_error(error)}") from error


def collect_generations(run: RunFolder) -> GenerationsReceipt | None:
    """Read the comparison with the parent; None without one, or if a loss is not finite."""
    return make_generations_receipt(_read_json(run.generations)) if run.generations.is_file() else None


def collect_judgement(run: RunFolder, name: str) -> JudgementReceipt | None:
    """Read the human votes on the adapter of a run, preferably against its base; None without votes."""
    result = collect_run_judgements(run).best_known
    return make_judgement_receipt(result, name) if result else None


def collect_versions(run: RunFolder) -> dict[str, str]:
    """Read the versions of Python and of the libraries that decide the numbers of a run."""
    return {str(name): str(version) for name, version in _read_json(run.versions).items()}


def _public_sources(value: JsonValue) -> JsonValue:
    """Return the data sources of a recipe without their folders; data sets of the hub keep their names."""
    if isinstance(value, list):
        return [_public_sources(inner) for inner in value]
    if isinstance(value, dict):
        return value | {"path": _public_sources(value.get("path")), "system": None}
    return public_file_name(value) if isinstance(value, str) else value


def public_file_name(text: str) -> str:
    """Return the name of a file without its folders.

    A folder becomes the word "folder", because its name could be the name of a client.
    """
    name = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    try:
        path = Path(text).expanduser()
        unnamed = path.is_dir() or not ("." in name[1:-1] or path.is_file())
    except (RuntimeError, OSError):  # no such user, a name that is too long
        unnamed = True
    if unnamed:
        return "folder"
    return name


def strip_folders(value: JsonValue) -> JsonValue:
    """Return a copy in which each path that is absolute, relative to a home or to `.` is only its last part."""
    if isinstance(value, dict):
        return {key: strip_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [strip_folders(inner) for inner in value]
    return strip_folder(value) if isinstance(value, str) else value


def strip_folder(text: str) -> str:
    """Return the last part of a text that is such a path on some system, and any other text unchanged."""
    windows, posix = PureWindowsPath(text), PurePosixPath(text)
    if posix.is_absolute() or text.startswith(("~", "..", "./")):
        return posix.name or text.strip("/~.")
    return windows.name if windows.is_absolute() or text.startswith("\\\\") else text


def _read_identity(run: RunFolder) -> Mapping[str, Any]:
    """Read the settings that identify a run; runs of older versions have them only in their checkpoints."""
    if run.identity.is_file():
        return _read_json(run.identity)
    manifests = sorted(run.checkpoints.glob("checkpoint-*/manifest.json"), key=lambda path: path.parent.name)
    return _read_json(manifests[-1]).get("identity", {}) if manifests else {}


@contextmanager
def _refuse_malformed(path: Path) -> Iterator[None]:
    """Raise IntegrityError if reading a value fails because the JSON file lacks keys or has other types."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise IntegrityError(
            f"{path} is damaged: its keys or types are not those that lora_chat writes ({type(error).__name__})."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file. Raises IntegrityError if it is missing or damaged."""
    try:
        fields: dict[str, Any] = read_json_object(path, MEDIUM_FILE_BYTES)
    except OSError as error:
        raise IntegrityError(f"{path} is missing or damaged: {error}") from error
    return fields
