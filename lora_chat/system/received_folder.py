"""Folders that somebody else may have made: refused by name if they hold anything but folders and regular files."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.system.hub_cache import find_repository_folder, is_blob_link
from lora_chat.system.regular_files import describe_file_type
from lora_chat.system.sanitize import sanitize_line

_MAX_ENTRIES = 50_000
_MAX_DEPTH = 20
"""Folders inside one another; runs have four, repositories with a `.git` in them have ten."""
_MAX_SHOWN_CHARACTERS = 300


def check_received_folder(folder: Path) -> None:
    """Raise IntegrityError if a folder holds a symbolic link, device, FIFO or socket anywhere, or too much.

    The folder itself may be a link: that is the choice of whoever named it. Allowed are the links of the Hugging Face
    hub's cache, from a snapshot to regular files among the blobs of the same repository. A folder that
    cannot be listed cannot be read by any library either, and is passed over.
    """
    root = folder.resolve()
    repository = find_repository_folder(root)
    waiting, count = [(root, 0)], 0
    while waiting:
        place, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise IntegrityError(f"{folder} holds folders more than {_MAX_DEPTH} deep inside one another; not opened.")
        for path, mode in _list_entries(place):
            count += 1
            if count > _MAX_ENTRIES:
                raise IntegrityError(f"{folder} holds more than {_MAX_ENTRIES:,} files and folders; not opened.")
            if stat.S_ISDIR(mode):
                waiting.append((path, depth + 1))
            elif not stat.S_ISREG(mode) and not (stat.S_ISLNK(mode) and is_blob_link(path, repository)):
                raise _refused_error(folder, path.relative_to(root), mode)


def _list_entries(place: Path) -> Iterator[tuple[Path, int]]:
    """Yield what a folder holds, with modes; nothing where it may not be listed."""
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_mode
    except (PermissionError, FileNotFoundError):  # lost+found, or a temporary file that is gone
        return


def _refused_error(folder: Path, inside: Path, mode: int) -> IntegrityError:
    return IntegrityError(
        f"{folder} is refused: it holds {describe_file_type(mode)}, "
        f"{sanitize_line(str(inside), _MAX_SHOWN_CHARACTERS)}.\n"
        "Only folders and regular files are opened, because links and special files make programs read and write "
        f"elsewhere. Delete it, or put a copy of the file in its place: "
        f"{folder / sanitize_line(str(inside), _MAX_SHOWN_CHARACTERS)}"
    )
