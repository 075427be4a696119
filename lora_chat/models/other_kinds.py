"""Explanations for a path or repository that is named as a base or an adapter and is something else."""

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from lora_chat.runs.run_folder import is_run_folder
from lora_chat.system.sanitize import sanitize_line

ADAPTER_CONFIG_NAME = "adapter_config.json"
_PARCEL_SUFFIX = ".lorachat"
_PARCEL_MEMBER = "receipt.json"
_BASE_CONFIG_NAME = "config.json"
_MODEL_WEIGHTS = re.compile(r"(pytorch_)?model[^/]*\.(safetensors|bin|index\.json)|consolidated[^/]*\.safetensors")
_ADAPTER_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"
_MAX_SHOWN = 5
_MAX_FILES = 10_000


def explain_other_base(path: Path, name: str) -> str | None:
    """Return what a path is, with the remedy, if it is an adapter or a run and not a base; otherwise None."""
    shown = sanitize_line(name, 300)
    if path.is_file():
        kind = "a parcel" if path.suffix == _PARCEL_SUFFIX else None
        return kind and _format_not_a_base(shown, kind)
    if is_run_folder(path):
        return _format_not_a_base(shown, "a run")
    return explain_other_repository(_list_files(path), shown)


def explain_other_repository(files: Iterable[str], name: str) -> str | None:
    """Return what the files of a folder or repository are, with the remedy, if they are an adapter and not a base."""
    names = set(files)
    if any(_MODEL_WEIGHTS.fullmatch(file) for file in names):
        return None
    if _PARCEL_MEMBER in names and ADAPTER_CONFIG_NAME in names:
        return _format_not_a_base(name, "a parcel")
    if ADAPTER_CONFIG_NAME in names:
        return _format_not_a_base(name, "an adapter")
    if _BASE_CONFIG_NAME in names:
        return None
    if subfolders := _list_subfolders(names, ADAPTER_CONFIG_NAME):
        return _format_not_a_base(name, f"a folder of adapters ({subfolders})")
    if subfolders := _list_subfolders(names, _BASE_CONFIG_NAME):
        return f"{name} has no {_BASE_CONFIG_NAME}, but folders in it have: {subfolders}.\nFix: name one of them."
    return None


def explain_other_adapter(files: Iterable[str], name: str) -> str | None:
    """Return what the files of a folder or repository are, with the remedy, if they are not one adapter."""
    names = set(files)
    if ADAPTER_CONFIG_NAME in names:
        return None
    if subfolders := _list_subfolders(names, ADAPTER_CONFIG_NAME):
        return f"{name} has no {ADAPTER_CONFIG_NAME}, but folders in it have: {subfolders}.\nFix: name one of them."
    if weights := sorted(names.intersection(_ADAPTER_WEIGHTS)):
        return (
            f"{name} has the weights of an adapter ({weights[0]}) and no {ADAPTER_CONFIG_NAME}, so its rank and scale "
            f"are unknown.\nFix: put the {ADAPTER_CONFIG_NAME} of its training beside them."
        )
    if _BASE_CONFIG_NAME in names or any(_MODEL_WEIGHTS.fullmatch(file) for file in names):
        return (
            f"{name} is a whole model, not an adapter.\n"
            f"Fix: lora-chat chat {name}; or use it as the base of a run (base.name)."
        )
    return None


def explain_other_adapter_folder(path: Path, name: str) -> str | None:
    """Return what a folder is, with the remedy, if it is not one adapter."""
    return explain_other_adapter(_list_files(path), sanitize_line(name, 300)) if path.is_dir() else None


def _format_not_a_base(name: str, kind: str) -> str:
    return (
        f"{name} is {kind}, not a base.\nFix: train on from it with adapter.start, without base.name; or merge it "
        f"first (lora-chat merge {name} --to FOLDER), and name FOLDER."
    )


def _list_subfolders(files: set[str], name: str) -> str:
    """Return the first folders that contain a file of this name, for a message."""
    folders = sorted({file.rpartition("/")[0] for file in files if file.endswith(f"/{name}")})
    shown = ", ".join(sanitize_line(folder, 100) for folder in folders[:_MAX_SHOWN])
    return f"{shown}, ..." if len(folders) > _MAX_SHOWN else shown


def _list_files(folder: Path) -> list[str]:
    """Return the relative paths of the first files in a folder and, unless it has a config, in its subfolders."""
    names = _list_matches(folder, "*")
    if ADAPTER_CONFIG_NAME not in names and _BASE_CONFIG_NAME not in names:
        names += _list_matches(folder, "*/*")
    return names


def _list_matches(folder: Path, pattern: str) -> list[str]:
    """Return the relative paths of the first files that match a pattern; none if the folder cannot be listed."""
    try:
        return [path.relative_to(folder).as_posix() for path in islice(folder.glob(pattern), _MAX_FILES)]
    except OSError:
        return []
