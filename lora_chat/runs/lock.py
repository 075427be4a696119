"""One process at a time in a run's folder."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_chat.errors import InUseError, explain_write_errors
from lora_chat.system.regular_files import open_regular_file

_LOCK_NAME = ".lock"
_LOCKED_ERRNOS = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets go when the process ends, however it ends.

    Raises InUseError, and IntegrityError if the lock's file is a link or not a regular file.
    """
    with explain_write_errors(folder, "the lock of the run"):
        handle = open_regular_file(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT)
    try:
        if not _try_lock(handle):
            raise InUseError(
                f"Another process is training in {folder}. Wait for it, or stop it; two would spoil each other's work."
            )
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _LOCKED_ERRNOS  # some network file systems know no locks
    return True
