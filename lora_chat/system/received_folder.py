"""Folders that somebody else may have made: refused by name if they hold anything but folders and regular files."""

import os
import stat
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.system.regular_files import kind_of
from lora_chat.system.sanitize import visible

_MOST_ENTRIES = 50_000
_DEEPEST = 20
"""Folders inside one another; runs have four, repositories with a `.git` in them have ten."""
_SHOWN = 300


def check_received_folder(folder: Path) -> None:
    """Raise IntegrityError if a folder holds a symbolic link, device, FIFO or socket anywhere, or too much.

    The folder itself may be a link: that is the choice of whoever named it. Allowed are the links of the Hugging Face
    hub's cache, from a snapshot to regular files among the blobs of the same repository. Raises OSError where a folder
    cannot be listed.
    """
    root = folder.resolve()
    blobs = _blobs_of(root)
    waiting, count = [(root, 0)], 0
    while waiting:
        place, depth = waiting.pop()
        if depth > _DEEPEST:
            raise IntegrityError(f"{folder} holds folders more than {_DEEPEST} deep inside one another; not opened.")
        with os.scandir(place) as entries:
            for entry in entries:
                count += 1
                if count > _MOST_ENTRIES:
                    raise IntegrityError(f"{folder} holds more than {_MOST_ENTRIES:,} files and folders; not opened.")
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    waiting.append((Path(entry.path), depth + 1))
                elif not stat.S_ISREG(mode) and not (stat.S_ISLNK(mode) and _is_blob(Path(entry.path), blobs)):
                    raise _refusal(folder, Path(entry.path).relative_to(root), mode)


def _blobs_of(root: Path) -> Path | None:
    """The folder of blobs that belongs to a snapshot in the hub's cache: REPOSITORY/snapshots/COMMIT."""
    if root.parent.name != "snapshots":
        return None
    blobs = root.parent.parent / "blobs"
    return blobs if blobs.is_dir() and not blobs.is_symlink() else None


def _is_blob(link: Path, blobs: Path | None) -> bool:
    """Whether a link leads to a regular file right inside the folder of blobs."""
    if blobs is None:
        return False
    target = Path(os.path.normpath(link.parent / link.readlink()))
    try:
        return target.parent == blobs and stat.S_ISREG(target.lstat().st_mode)
    except OSError:
        return False


def _refusal(folder: Path, inside: Path, mode: int) -> IntegrityError:
    return IntegrityError(
        f"{folder} is refused: it holds {kind_of(mode)}, {visible(str(inside), _SHOWN)}.\n"
        "Only folders and regular files are opened, because links and special files make programs read and write "
        f"elsewhere. Delete it, or put a copy of the file in its place: {folder / visible(str(inside), _SHOWN)}"
    )
