"""A lock that lets one process at a time train in a run folder."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_chat.errors import InUseError, explain_write_errors
from lora_chat.system.file_lock import acquire_lock
from lora_chat.system.regular_files import open_regular_file

_LOCK_NAME = ".lock"
_ATTEMPTS, _PAUSE_SECONDS = 3, 0.05
"""Number of attempts to lock a folder and the time between them, because `is_in_use` locks it for a moment."""


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder during the block; the system releases the lock when the process ends for any reason.

    The lock file is never deleted, because a process that waits for a deleted file would lock nothing.
    Raise InUseError, or IntegrityError if the lock file is a link or not a regular file.
    """
    with explain_write_errors(folder, "the lock of the run"):
        handle = open_regular_file(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT)
    try:
        if not _try_to_lock(handle):
            raise InUseError(
                f"Another process is training in {folder}. Wait for it or stop it, "
                "because two would overwrite each other's files."
            )
        yield
    finally:
        os.close(handle)


def is_in_use(folder: Path) -> bool:
    """Return whether another process trains in a run folder. Nothing is created. Raise OSError or IntegrityError."""
    try:
        handle = open_regular_file(folder / _LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:  # no process of this version has trained there
        return False
    try:
        return not acquire_lock(handle, wait=False)
    finally:
        os.close(handle)


def _try_to_lock(handle: int) -> bool:
    """Lock an open file in one of a few attempts. Return False if another process has it all the time."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        if acquire_lock(handle, wait=False):
            return True
    return False
