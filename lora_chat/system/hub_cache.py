"""Folders of the hub's cache: their links lead to the blobs of the same repository, and nowhere else."""

import stat
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.system.sanitize import visible


def check_snapshot(folder: Path) -> Path:
    """Return the folder of a commit, if each file in it is a regular one or a link to a blob of the repository.

    Raises IntegrityError for a planted link, device or pipe, by name.
    """
    pending = [folder]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.is_dir() and not path.is_symlink():
                pending.append(path)
            else:
                check_cached(path)
    return folder


def check_cached(path: Path) -> Path:
    """Return the path of one file of a commit, checked as `check_snapshot` does."""
    place = next((parent for parent in path.parents if parent.name == "snapshots"), None)
    if place is None:
        raise _planted(path, "lies outside of it")
    blobs = (place.parent / "blobs").resolve()
    shared = (place.parent.parent / "blobs").resolve()  # one store for all repositories, which other tools may fill
    target = path.resolve()
    own = path.is_symlink() and (blobs in target.parents or shared in target.parents)
    if path.is_symlink() and not own:
        raise _planted(path, f"is a link to {target}")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise _planted(path, "is no regular file")
    return path


def _planted(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{visible(str(path))} in the hub's cache {visible(what)}, which the hub's library never makes.\n"
        f"Delete the folder and download again: {visible(str(path.parent))}"
    )
