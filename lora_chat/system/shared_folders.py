"""Safe work in folders where any user can replace files: mode 0777 without the sticky bit, or a stranger's folder.

A path through such a folder may lead elsewhere a moment later, but an open descriptor does not. Files there are
therefore accessed by the descriptor's path in /proc, which libraries and child processes can use like any other path.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.system.sanitize import sanitize_line

_UNKNOWN_USER = 65534
"""User id that a container shows for users that it does not know."""


def is_open_to_all(folder: Path) -> bool:
    """Return whether any user can rename the files of others in a folder; False if that is unknown."""
    if os.name == "nt":  # Windows gives each user a profile that others cannot write to
        return False
    status = folder.stat()
    if not status.st_mode & stat.S_IWOTH:
        return False
    return not status.st_mode & stat.S_ISVTX or status.st_uid not in (os.geteuid(), 0, _UNKNOWN_USER)


def check_run_location(folder: Path) -> None:
    """Raise UsageError if any user could replace a run folder, because training writes to it for hours.

    The folder was created with mode 0700. If it has another mode, the file system has no modes and nothing is known.
    """
    if folder.stat().st_mode & 0o077 or not is_open_to_all(folder.parent):
        return
    where = sanitize_line(str(folder.parent))
    raise UsageError(
        f"Any user can rename folders in {where} and redirect the files of the run.\n"
        f"Fix: chmod +t {where}\nOr choose a folder in it: --set output.directory={where}/runs"
    )


@contextmanager
def pinned_folder(folder: Path) -> Iterator[Path]:
    """Yield a path that leads to this folder during the block, even if the folder is renamed.

    It is the unchanged path if no other user can rename the folder or one above it, and on systems without /proc.
    """
    if not _can_be_replaced(folder):
        yield folder
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        path = _descriptor_path(handle)
        yield folder if path is None else path
    finally:
        os.close(handle)


@contextmanager
def pinned_new_folder(folder: Path) -> Iterator[Path]:
    """Yield a path like `pinned_folder`, for a folder that this process has just created in a pinned folder.

    Raise IntegrityError if somebody has already replaced it.
    """
    if os.name == "nt" or not is_open_to_all(folder.parent):
        yield folder
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _replaced_error(folder) from error
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or os.listdir(handle):  # noqa: PTH208
            raise _replaced_error(folder)
        path = _descriptor_path(handle)
        yield folder if path is None else path
    finally:
        os.close(handle)


def _can_be_replaced(folder: Path) -> bool:
    """Return whether any user can replace a folder, a folder above it, or the files in it."""
    if os.name == "nt":
        return False
    real = folder.resolve()
    return any(is_open_to_all(path) for path in (real, *real.parents))


def _descriptor_path(handle: int) -> Path | None:
    """Return the path of an open descriptor in /proc, or None on systems without it."""
    path = Path(f"/proc/{os.getpid()}/fd/{handle}")
    try:
        return path if os.path.samestat(path.stat(), os.fstat(handle)) else None
    except OSError:
        return None


def _replaced_error(folder: Path) -> IntegrityError:
    return IntegrityError(
        f"Somebody replaced {sanitize_line(str(folder))} while it was being created; nothing was saved.\n"
        "Choose another folder, or deny other users access to the one above it: chmod o-w FOLDER"
    )
