"""Sizes of folders, measured without following links."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_MAX_ENTRIES = 1_000_000


def measure_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all regular files in a folder; links count as nothing.

    Files that disappear in the meantime, and folders that cannot be listed, are left out.
    """
    try:
        status = path.lstat()
    except OSError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return sum(status.st_size for status in _list_files(path))


def _list_files(folder: Path) -> Iterator[os.stat_result]:
    """Yield the status of each regular file in a folder and its folders."""
    pending, count = [str(folder)], 0
    while pending and count < _MAX_ENTRIES:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.stat(follow_symlinks=False)
        except OSError:
            continue
