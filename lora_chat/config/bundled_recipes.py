"""The recipes that come with lora_chat, which a command finds by name from every folder."""

import difflib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_chat.errors import RecipeError, UsageError, explain_write_errors
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.package_folders import find_package_folder
from lora_chat.system.sanitize import sanitize_line

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_MAX_SUMMARY_CHARACTERS = 200


@dataclass(frozen=True)
class BundledRecipe:
    """A recipe of lora_chat."""

    name: str
    path: Path
    summary: str
    """First line of its comment."""


def list_bundled_recipes() -> list[BundledRecipe]:
    """Return all recipes of lora_chat, general ones first and tasks last."""
    folder = find_package_folder("recipes")
    paths = sorted(folder.glob("*.yaml")) + sorted(folder.glob("tasks/*.yaml"))
    return [BundledRecipe(path.stem, path, _read_summary(path)) for path in paths]


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe, given as a path or as the name of a bundled recipe. A file comes before a name.

    Raises RecipeError with the nearest name if neither exists.
    """
    path = Path(recipe)
    if not isinstance(recipe, str) or not _NAME.fullmatch(recipe) or path.is_file():
        return path
    known = {bundled.name: bundled.path for bundled in list_bundled_recipes()}
    if recipe in known:
        return known[recipe]
    near = difflib.get_close_matches(recipe, known, n=1)
    own = Path(f"{recipe}.yaml")
    near = [str(own)] if own.is_file() else near
    hint = f" Did you mean {near[0]}?" if near else ""
    raise RecipeError(
        f"{sanitize_line(recipe, 100)} is neither a file nor a recipe of lora_chat.{hint}\nFix: lora-chat recipes"
    )


def copy_bundled_recipes(to: Path) -> None:
    """Copy all recipes and their data into a new folder. Raises UsageError if it exists or cannot be written."""
    if os.path.lexists(to):
        raise UsageError(f"{sanitize_line(str(to), 200)} exists. Fix: name a new folder.")
    with explain_write_errors(to, "the recipes"), atomic_folder(to, "the recipes") as folder:
        shutil.copytree(find_package_folder("recipes"), folder, dirs_exist_ok=True, copy_function=shutil.copyfile)


def _read_summary(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline(_MAX_SUMMARY_CHARACTERS).lstrip("# ").rstrip()
