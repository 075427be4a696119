"""Create a run folder with the recipe, the plan and the versions of the libraries."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from lora_chat.config.load import format_recipe_yaml
from lora_chat.config.plan import Plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import UsageError, explain_write_errors
from lora_chat.runs.run_folder import RunFolder, find_numbered_folders
from lora_chat.system.atomic_write import fsync_path, make_parents
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


def create_run_folder(recipe: Recipe, plan: Plan, begin: Callable[[RunFolder], None]) -> RunFolder:
    """Create the next free `<name>-<n>` and write recipe, plan and versions into it.

    `begin` is called with the folder while it is empty and not a run yet. Raise UsageError or DiskFullError if a file
    cannot be written.
    """
    parent = expand_user_path(recipe.output.directory, "output.directory: ").absolute()
    name = recipe.output.name or "run"
    with explain_write_errors(parent, "the run folder"):
        make_parents(parent / name)
        run = RunFolder(_create_next_folder(parent, name))
    try:
        check_run_location(run.path)
    except UsageError:
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


def _create_next_folder(parent: Path, name: str) -> Path:
    number = max(find_numbered_folders(parent, name), default=0) + 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir(mode=0o700)  # it contains training data
            return path
        except FileExistsError:  # another process has just created it
            number += 1


def write_run_description(run: RunFolder, recipe: Recipe, plan: Plan) -> None:
    """Write recipe, plan and versions into a run folder."""
    run.write_text(run.recipe, format_recipe_yaml(recipe))
    run.write_text(run.plan, plan.model_dump_json(indent=2) + "\n")
    run.write_json(run.versions, read_library_versions())


def delete_run(run: RunFolder) -> None:
    """Delete a run in which nothing was trained, and the folder of runs if it was the only one."""
    shutil.rmtree(run.path, ignore_errors=True)
    with suppress(OSError):
        run.path.parent.rmdir()


@cache
def read_library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that influence the results of a run."""
    import platform

    versions = {"python": platform.python_version()}
    for name in _RECORDED_LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
