"""Opening of regular files only: links are not followed, and FIFOs and devices do not block."""

import errno
import os
import stat
from pathlib import Path

from lora_chat.errors import IntegrityError

_PRIVATE_FILE_MODE = 0o600
_LINK_ERRNOS = {errno.ELOOP, errno.EMLINK}
"""Errors of O_NOFOLLOW at a link; FreeBSD returns EMLINK."""


def open_regular_file(path: Path, flags: int = os.O_RDONLY, *, follow: bool = False) -> int:
    """Open a regular file and return its descriptor; a new file has mode 0600.

    With `follow` a link at the last component is followed. Raise IntegrityError for a link, FIFO, socket, device or
    folder, and OSError for other failures.
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
        if error.errno == errno.ENXIO:  # a socket, or a FIFO without a reader that is opened for writing
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
    """Return the type of a file, from its mode, with an article."""
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
    """Raise IntegrityError for a link, because Windows has no O_NOFOLLOW."""
    if path.is_symlink():
        raise _link_error(path)


def _link_error(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} is a symbolic link, which is not followed. Delete it, or replace it by the file itself."
    )
