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


def measure_last_use(path: Path) -> float:
    """Return the time of the last use of a file or folder, in seconds since 1970; 0 if it does not exist.

    It is the newest time at which it, or a file in it, was read or changed. Many systems record a read at most once a
    day.
    """
    try:
        status = path.lstat()
    except OSError:
        return 0.0
    if not stat.S_ISDIR(status.st_mode):
        return max(status.st_mtime, status.st_atime)
    return max([status.st_mtime, *(max(each.st_mtime, each.st_atime) for each in _list_files(path))])
