"""Folders in which any user can rename and replace what others made: 0777 without the sticky bit, or a stranger's.

A path through such a folder may lead elsewhere a moment later. An open descriptor does not, so work in it goes through
the descriptor's name in /proc, which the libraries and child processes of this user can use like any other path.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.system.sanitize import sanitize_line

_UNKNOWN_USER = 65534
"""What a container shows for users that it does not know."""


def is_open_to_all(folder: Path) -> bool:
    """Return whether any user can rename what others made in a folder; False where that cannot be known."""
    if os.name == "nt":  # Windows gives each user a profile that others cannot write to
        return False
    found = folder.stat()
    if not found.st_mode & stat.S_IWOTH:
        return False
    return not found.st_mode & stat.S_ISVTX or found.st_uid not in (os.geteuid(), 0, _UNKNOWN_USER)


def check_run_location(folder: Path) -> None:
    """Raise RecipeError if any user could put another folder in the place of a run's, which is written for hours.

    `folder` is the run's, made with mode 0700; on a file system without modes nothing can be known.
    """
    if folder.stat().st_mode & 0o077 or not is_open_to_all(folder.parent):
        return
    where = sanitize_line(str(folder.parent))
    raise RecipeError(
        f"Any user can rename folders in {where}, and have the run written elsewhere.\n"
        f"Close it: chmod +t {where}\nOr choose a folder in it: --set output.directory={where}/runs"
    )


@contextmanager
def pinned_folder(folder: Path) -> Iterator[Path]:
    """Give a path that leads to this very folder during the block, whatever is renamed meanwhile.

    It is the folder's own path where no other user can rename it or a folder above it, and on systems without /proc.
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
    """As `pinned_folder`, for a folder that this process has just made; `folder` lies in a pinned one.

    Raises IntegrityError if somebody has put another in its place already.
    """
    if os.name == "nt" or not is_open_to_all(folder.parent):
        yield folder
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _replaced_error(folder) from error
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid() or os.listdir(handle):  # noqa: PTH208
            raise _replaced_error(folder)
        path = _descriptor_path(handle)
        yield folder if path is None else path
    finally:
        os.close(handle)


def _can_be_replaced(folder: Path) -> bool:
    """Return whether any user can replace a folder, one above it, or what is made in it."""
    if os.name == "nt":
        return False
    real = folder.resolve()
    return any(is_open_to_all(place) for place in (real, *real.parents))


def _descriptor_path(handle: int) -> Path | None:
    path = Path(f"/proc/{os.getpid()}/fd/{handle}")
    try:
        return path if os.path.samestat(path.stat(), os.fstat(handle)) else None
    except OSError:
        return None


def _replaced_error(folder: Path) -> IntegrityError:
    return IntegrityError(
        f"Somebody replaced {sanitize_line(str(folder))} while it was being made; nothing was kept.\n"
        "Choose another folder, or close the one above it: chmod o-w FOLDER"
    )
