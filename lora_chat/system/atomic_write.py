"""Files and folders that are there whole or not at all: written beside under a random name, synced, then renamed.

What is written beside is created exclusively and can be opened by its owner alone until it has its final name, so that
other users of a shared folder can neither plant a link at its name nor exchange it. The final name is taken by rename:
a link that stands there is replaced, never followed.
"""

import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lora_chat.errors import IntegrityError, explain_write_errors
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.shared_folders import pinned_folder, pinned_new_folder

_FSYNC_UNSUPPORTED_ERRNOS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""What file systems say that cannot sync a folder."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)
_TEMPORARY_SUFFIX = ".part"
_NAME_PREFIX_LENGTH = 40
"""Characters of a file's name that its temporary file repeats; 255 bytes are the most that file systems take."""
_PRIVATE_FOLDER_MODE, _PRIVATE_FILE_MODE = 0o700, 0o600


@contextmanager
def atomic_folder(to: Path, what: str, *, shared: bool = False) -> Iterator[Path]:
    """A new folder beside `to` that takes its place when the block ends well, and vanishes otherwise.

    A folder that stood there is replaced. With `shared` its final modes follow the umask; otherwise they are 0700 and
    0600. Where any user can rename folders, the path in the block leads through /proc. Raises DiskFullError,
    DiskError or RecipeError when it cannot be written, IntegrityError when somebody has put another folder in its
    place meanwhile.
    """
    with explain_write_errors(to, what):
        make_parents(to)
        with pinned_folder(to.parent) as parent:
            temporary = Path(tempfile.mkdtemp(prefix=f".{to.name[:_NAME_PREFIX_LENGTH]}-", dir=parent))
            created = os.lstat(temporary)
            try:
                with pinned_new_folder(temporary) as private_folder:
                    try:
                        new_folder = (
                            private_folder / to.name
                        )  # made by us: mkdtemp's own folder is closed to everyone else
                        new_folder.mkdir(mode=0o777 if shared else _PRIVATE_FOLDER_MODE)
                        yield new_folder
                        _set_modes_and_fsync(new_folder, shared=shared)
                        _check_not_replaced(created, temporary)
                        _rename_into_place(new_folder, parent / to.name, private_folder / "old")
                        fsync_path(parent)
                    finally:
                        if private_folder != temporary:  # wherever it has been moved to meanwhile
                            _delete_contents(private_folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def make_parents(path: Path) -> None:
    """Make the folders above a path that are missing; others cannot write to them, whatever the umask."""
    for folder in reversed(path.parents):
        if not folder.is_dir():
            folder.mkdir(mode=0o755, exist_ok=True)


def _delete_contents(folder: Path) -> None:
    for left in folder.iterdir():
        if stat.S_ISDIR(left.lstat().st_mode):
            shutil.rmtree(left, ignore_errors=True)
        else:  # rmtree would wait for a FIFO
            with suppress(OSError):
                left.unlink()


def _set_modes_and_fsync(inside: Path, *, shared: bool) -> None:
    """Set the final modes and have all of it written to the disk."""
    bits = inside.stat().st_mode & 0o666
    for path in sorted(inside.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):  # safetensors leaves its files readable by their owner alone
            path.chmod(bits)
        elif stat.S_ISDIR(mode) and not shared:
            path.chmod(_PRIVATE_FOLDER_MODE)
        fsync_path(path)
    fsync_path(inside)


def write_text_atomically(path: Path, text: str, what: str) -> None:
    """Write a text file that its owner alone can read, so that readers see the old one or the new one."""
    with atomic_output_file(path, what) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def atomic_output_file(path: Path, what: str, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """An open file beside `path` that takes its place when the block ends well; its `name` is where it is until then.

    With `shared` its final mode follows the umask; otherwise it is 0600.
    """
    with explain_write_errors(path, what), atomic_file(path, shared=shared) as file:
        yield file


@contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """As `atomic_output_file`; raises what the system says."""
    temporary = path.with_name(f".{path.name[:_NAME_PREFIX_LENGTH]}.{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb", opener=_create_exclusively) as file:
            yield file
            file.flush()
            if shared and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o666 & ~_read_umask())
            os.fsync(file.fileno())
            created = os.fstat(file.fileno())
        _check_not_replaced(created, temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def is_temporary_file(path: Path) -> bool:
    """Whether a path is named as files are while they are being written; killed processes leave them behind."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY_SUFFIX)


def open_to_append(path: Path) -> IO[str]:
    """Open a text file of ours to append to, created with mode 0600. Raises IntegrityError for a link or no file."""
    return os.fdopen(open_regular_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")


@contextmanager
def private_umask() -> Iterator[None]:
    """Have everything that this process creates meanwhile be for its owner alone, whoever creates it."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def fsync_path(path: Path) -> None:
    """Have the system write a file or folder to its disk; Windows cannot open folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in _FSYNC_UNSUPPORTED_ERRNOS:
            raise
    finally:
        os.close(handle)


def _create_exclusively(name: str, _flags: int) -> int:
    """Create a file that is not there yet, and follow no link that somebody may have put at its name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for more in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # not every system has all of them
        flags |= getattr(os, more, 0)
    return os.open(name, flags, _PRIVATE_FILE_MODE)


def _read_umask() -> int:
    """Read the umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _check_not_replaced(created: os.stat_result, temporary: Path) -> None:
    """Raise IntegrityError unless what is at a temporary name is still what was created there."""
    try:
        found = os.lstat(temporary)
    except FileNotFoundError:
        found = None
    if found is None or (found.st_dev, found.st_ino) != (created.st_dev, created.st_ino):
        raise IntegrityError(
            f"Somebody replaced {temporary} while it was being written; nothing was kept.\n"
            f"Other users can rename files in {temporary.parent}: choose another folder, or close it (chmod go-w)."
        )


def _rename_into_place(new: Path, to: Path, old: Path) -> None:
    """Rename; where something stands at `to`, in one step if the system can, so that it is never missing."""
    exists = os.path.lexists(to)  # a link is replaced itself, wherever it leads
    if exists and _exchange_names(new, to):
        return
    if exists:
        to.rename(old)
    new.rename(to)


def _exchange_names(one: Path, other: Path) -> bool:
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc 2.28
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return rename is not None and rename(*names, _RENAME_EXCHANGE) == 0
