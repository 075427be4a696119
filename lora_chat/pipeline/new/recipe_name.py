"""The file name of a new recipe, which never replaces a file."""

import os
import re
from pathlib import Path

from lora_chat.config.recipe import OutputSection
from lora_chat.errors import UsageError
from lora_chat.system.sanitize import sanitize_line

_ENDING = ".yaml"
_MAX_NAME = 100
_MAX_TRIES = 1000


def choose_recipe_path(name: str | None, fallback: str) -> Path:
    """Return the path of a recipe in the working directory.

    Without a name it follows from `fallback`, such as the name of the data, with a number if the file exists. Raises
    UsageError for a name that is not a plain file name, or that exists.
    """
    if name is None:
        return _choose_free_path(fallback)
    stem = name.removesuffix(_ENDING)
    if len(stem) > _MAX_NAME or not _is_run_name(stem):
        raise UsageError(
            f"{sanitize_line(name, 100)!r} is not a name for a recipe. Fix: use letters, digits, `-`, `_` and dots, as "
            "in lora-chat new mine --data my.jsonl. The recipe is written into the working directory."
        )
    path = Path(stem + _ENDING)
    if os.path.lexists(path):
        raise UsageError(f"{path.name} exists, and a new recipe replaces no file. Fix: choose another name.")
    return path


def _is_run_name(name: str) -> bool:
    """Return whether a name can be that of runs, because the run folders have the name of the recipe."""
    try:
        OutputSection(name=name)
    except ValueError:
        return False
    return True


def _choose_free_path(fallback: str) -> Path:
    """Return the first path that does not exist, of a name and the same name with numbers."""
    stem = re.sub(r"[^\w.-]+", "-", fallback, flags=re.ASCII).strip(".-_")[:_MAX_NAME] or "recipe"
    stem = stem if _is_run_name(stem) else "recipe"
    for number in range(1, _MAX_TRIES):
        path = Path(f"{stem}{f'-{number}' if number > 1 else ''}{_ENDING}")
        if not os.path.lexists(path):
            return path
    raise UsageError(f"{stem}{_ENDING} and many numbered ones exist. Fix: name the recipe, as in lora-chat new mine.")
