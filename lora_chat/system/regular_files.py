"""Files opened only if they are regular ones: links are not followed, FIFOs and devices not waited for."""

import errno
import os
import stat
from pathlib import Path

from lora_chat.errors import IntegrityError

_PRIVATE_FILE_MODE = 0o600
_LINK_ERRNOS = {errno.ELOOP, errno.EMLINK}
"""What systems answer to O_NOFOLLOW at a link; FreeBSD says EMLINK."""


def open_regular_file(path: Path, flags: int = os.O_RDONLY, *, follow: bool = False) -> int:
    """Open a regular file and return its descriptor; a file that is created is readable by its owner alone.

    With `follow` a link at the last component is followed. Raises IntegrityError for a link, FIFO, socket, device or
    folder, and OSError as the system gives it.
    """
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)  # opening a FIFO without a writer would wait for one
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
        _refuse_link(path)
    try:
        handle = os.open(path, flags, _PRIVATE_FILE_MODE)
    except IsADirectoryError:
        raise IntegrityError(f"{path} is a folder, not a file.") from None
    except OSError as error:
        if error.errno in _LINK_ERRNOS and not follow:
            raise _link_error(path) from error
        if error.errno == errno.ENXIO:  # a socket, or a FIFO opened for writing that nobody reads
            raise IntegrityError(f"{path} is not a regular file. Delete it.") from error
        raise
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise IntegrityError(f"{path} is {describe_file_type(mode)}, not a regular file.")
    except BaseException:
        os.close(handle)
        raise
    return handle


def describe_file_type(mode: int) -> str:
    """Name the kind of a file by its mode, with an article."""
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
        stat.S_IFREG: "a regular file",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _refuse_link(path: Path) -> None:
    """Name a link before the system is asked, because Windows has no O_NOFOLLOW."""
    if path.is_symlink():
        raise _link_error(path)


def _link_error(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} is a symbolic link, and is not followed. Delete it, or put the file itself there.")
