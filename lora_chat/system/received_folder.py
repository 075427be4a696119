"""Check of folders from strangers, which may contain only folders and regular files."""

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
"""Largest depth of nested folders; runs have four levels, repositories with a `.git` have ten."""
_MAX_SHOWN_CHARACTERS = 300


def check_received_folder(folder: Path) -> None:
    """Raise IntegrityError if a folder contains a symbolic link, device, FIFO or socket, or too many entries.

    The folder itself may be a link, because the user chose it. Links of the Hugging Face hub's cache, from a snapshot
    to regular files among the blobs of the same repository, are allowed. A folder that cannot be listed is skipped,
    because no library can read it.
    """
    root = folder.resolve()
    repository = find_repository_folder(root)
    pending, count = [(root, 0)], 0
    while pending:
        current, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise IntegrityError(f"{folder} is refused: its folders are nested more than {_MAX_DEPTH} deep.")
        for path, mode in _list_entries(current):
            count += 1
            if count > _MAX_ENTRIES:
                raise IntegrityError(f"{folder} is refused: it contains more than {_MAX_ENTRIES:,} files and folders.")
            if stat.S_ISDIR(mode):
                pending.append((path, depth + 1))
            elif not stat.S_ISREG(mode) and not (stat.S_ISLNK(mode) and is_blob_link(path, repository)):
                raise _refused_error(folder, path.relative_to(root), mode)


def _list_entries(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the paths in a folder with their modes; yield nothing if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_mode
    except (PermissionError, FileNotFoundError):  # such as lost+found, or a temporary file that was deleted
        return


def _refused_error(folder: Path, inside: Path, mode: int) -> IntegrityError:
    return IntegrityError(
        f"{folder} is refused: it contains {describe_file_type(mode)}, "
        f"{sanitize_line(str(inside), _MAX_SHOWN_CHARACTERS)}.\n"
        "Only folders and regular files are opened, because links and special files make programs read and write "
        f"elsewhere. Delete it, or put a copy of the file in its place: "
        f"{folder / sanitize_line(str(inside), _MAX_SHOWN_CHARACTERS)}"
    )
