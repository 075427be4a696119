"""Explain a path of a recipe at which there is no file."""

import difflib
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path

from lora_chat.system.sanitize import sanitize_line

_HUB_NAME_PART = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
_DATA_ENDING = re.compile(r"\.(jsonl?|ndjson|csv|tsv|txt|parquet|arrow|gz|xz|bz2|zst|zip)$", re.IGNORECASE)
_MAX_NAMES, _MAX_PARTS = 5_000, 12


def explain_missing_path(path: Path) -> str:
    """Return the likely fix for a path without a file, as a line, or nothing.

    The path is absolute, so the name in the recipe is one of its ends.
    """
    with suppress(OSError, ValueError):
        fix = _other_folder(path) or _near_name(path) or _hub_name(path)
        if fix:
            return f"\nFix: {fix}"
        first_missing = next((parent for parent in reversed(path.parents) if not parent.exists()), None)
        if first_missing:
            return f" There is no folder {sanitize_line(str(first_missing), 300)}."
    return ""


def _other_folder(path: Path) -> str:
    """Return the advice for a path that exists below the working directory."""
    here = Path.cwd()
    for count in range(min(len(path.parts) - 1, _MAX_PARTS), 0, -1):
        other = here.joinpath(*path.parts[-count:])
        if other != path and other.exists() and (count > 1 or other.is_file()):
            return (
                "a path in a recipe starts at the folder of the recipe, a path in --set at the working directory; "
                f"there is {sanitize_line(str(other), 300)}."
            )
    return ""


def _near_name(path: Path) -> str:
    """Return the advice for a name that is similar to one in the same folder, or in a folder with a similar name."""
    folder = next(parent for parent in path.parents if parent.exists())
    wanted = path.parts[len(folder.parts)]
    names = [entry.name for entry in islice(folder.iterdir(), _MAX_NAMES) if not entry.name.startswith(".")]
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.75)
    if not near:
        same_stem = [name for name in names if wanted.split(".")[0] and name.split(".")[0] == wanted.split(".")[0]]
        near = same_stem[:1] if len(same_stem) == 1 else []
    if not near:
        return ""
    meant = folder.joinpath(near[0], *path.parts[len(folder.parts) + 1 :])
    return f"did you mean {sanitize_line(str(meant), 300)}?" if meant.exists() else ""


def _hub_name(path: Path) -> str:
    """Return the advice for the name of a data set on the hub."""
    owner, name = path.parts[-2:] if len(path.parts) > 2 else ("", "")
    is_name = bool(_HUB_NAME_PART.fullmatch(owner) and _HUB_NAME_PART.fullmatch(name))
    if not is_name or path.parent.exists() or not path.parent.parent.exists() or _DATA_ENDING.search(name):
        return ""
    return (
        f"for the data set {owner}/{name} of the hub, write in the recipe `train: {{hub: {owner}/{name}, "
        f"split: train}}`, or add --set 'data.train={{hub: {owner}/{name}, split: train}}'."
    )
