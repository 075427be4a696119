"""Atomic writes: files and folders are written under a random name beside the target, synced and then renamed.

Until the rename only the owner can open them, and they are created exclusively. Other users of a shared folder can
therefore neither plant a link at the name nor exchange the file. The rename replaces a link at the final name and never
follows it.
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

from lora_chat.errors import IntegrityError, UsageError, explain_write_errors
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.shared_folders import pinned_folder, pinned_new_folder

_FSYNC_UNSUPPORTED_ERRNOS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""Errors of file systems that cannot sync a folder."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)
_TEMPORARY_SUFFIX = ".part"
_NAME_PREFIX_LENGTH = 40
"""Characters of a file's name that its temporary name repeats, because file systems allow 255 bytes in all."""
_PRIVATE_FOLDER_MODE, _PRIVATE_FILE_MODE = 0o700, 0o600


@contextmanager
def atomic_folder(to: Path, what: str, *, shared: bool = False) -> Iterator[Path]:
    """Yield a new folder that replaces `to` when the block ends without an error, and is deleted otherwise.

    With `shared` the final modes follow the umask; otherwise they are 0700 and 0600. If any user can rename folders
    there, the yielded path leads through /proc. Raise DiskFullError, DiskError or UsageError if the folder cannot be
    written, IntegrityError if somebody has replaced the new folder in the meantime.
    """
    with explain_write_errors(to, what):
        make_parents(to)
        with pinned_folder(to.parent) as parent:
            temporary = Path(tempfile.mkdtemp(prefix=f".{to.name[:_NAME_PREFIX_LENGTH]}-", dir=parent))
            created = os.lstat(temporary)
            try:
                with pinned_new_folder(temporary) as private_folder:
                    try:
                        new_folder = private_folder / to.name  # a child, because mkdtemp's mode is always 0700
                        new_folder.mkdir(mode=0o777 if shared else _PRIVATE_FOLDER_MODE)
                        yield new_folder
                        _set_modes_and_fsync(new_folder, shared=shared)
                        _check_not_replaced(created, temporary)
                        _rename_into_place(new_folder, parent / to.name, private_folder / "old")
                        fsync_path(parent)
                    finally:
                        if private_folder != temporary:  # it may have been moved in the meantime
                            _delete_contents(private_folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def make_parents(path: Path) -> None:
    """Create the missing folders above a path; other users cannot write to them, whatever the umask is."""
    for folder in reversed(path.parents):
        if not folder.is_dir():
            folder.mkdir(mode=0o755, exist_ok=True)


def _delete_contents(folder: Path) -> None:
    """Delete all files and folders in a folder, as far as the system allows it."""
    for path in folder.iterdir():
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:  # rmtree would wait for a FIFO
            with suppress(OSError):
                path.unlink()


def _set_modes_and_fsync(folder: Path, *, shared: bool) -> None:
    """Set the final modes of a folder and its contents, and sync them to the disk."""
    file_mode = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):  # safetensors creates files that only their owner can read
            path.chmod(file_mode)
        elif stat.S_ISDIR(mode) and not shared:
            path.chmod(_PRIVATE_FOLDER_MODE)
        fsync_path(path)
    fsync_path(folder)


def write_text_atomically(path: Path, text: str, what: str) -> None:
    """Write a text file with mode 0600, so that readers see either the old or the new content."""
    with atomic_output_file(path, what) as file:
        file.write(text.encode("utf-8"))


def write_new_text(path: Path, text: str, what: str) -> None:
    """Write a new text file, whose mode follows the umask. Raise UsageError if the path exists, even since a moment."""
    with explain_write_errors(path, what):
        temporary = path.with_name(f".{path.name[:_NAME_PREFIX_LENGTH]}.{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}")
        try:
            with atomic_file(temporary, shared=True) as file:
                file.write(text.encode("utf-8"))
            try:
                os.link(temporary, path)  # unlike a rename, it replaces nothing
            except FileExistsError:
                raise UsageError(
                    f"{path.name} exists, and {what} replaces no file. Fix: choose another name."
                ) from None
            except (OSError, NotImplementedError, AttributeError):  # a file system without links
                path.open("xb").close()
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)


@contextmanager
def atomic_output_file(path: Path, what: str, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """Yield an open file that replaces `path` when the block ends without an error; `name` is its temporary path.

    With `shared` its final mode follows the umask; otherwise it is 0600. Raise DiskFullError, DiskError or UsageError
    if the file cannot be written.
    """
    with explain_write_errors(path, what), atomic_file(path, shared=shared) as file:
        yield file


@contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """Yield an open file like `atomic_output_file`, but raise OSError if it cannot be written."""
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
    """Return whether a path has a temporary name of this module; killed processes leave such files."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY_SUFFIX)


def open_to_append(path: Path) -> IO[str]:
    """Open a text file for appending, or create it with mode 0600. Raise IntegrityError for a link or special file."""
    return os.fdopen(open_regular_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")


@contextmanager
def private_umask() -> Iterator[None]:
    """Make all files that this process creates during the block accessible to their owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def fsync_path(path: Path) -> None:
    """Sync a file or folder to the disk; do nothing for a folder on Windows, which cannot open folders."""
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
    """Create a new file for `open`; fail if the name exists, and follow no link that somebody may have planted."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for name_of_flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # some systems lack some of them
        flags |= getattr(os, name_of_flag, 0)
    return os.open(name, flags, _PRIVATE_FILE_MODE)


def _read_umask() -> int:
    """Return the umask; the system only returns it when a new one is set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _check_not_replaced(created: os.stat_result, temporary: Path) -> None:
    """Raise IntegrityError unless the temporary path still leads to the file or folder that was created there."""
    try:
        status = os.lstat(temporary)
    except FileNotFoundError:
        status = None
    if status is None or (status.st_dev, status.st_ino) != (created.st_dev, created.st_ino):
        raise IntegrityError(
            f"Somebody replaced {temporary} while it was being written; nothing was saved.\n"
            f"Other users can rename files in {temporary.parent}. Choose another folder, or deny them: chmod go-w."
        )


def _rename_into_place(new: Path, to: Path, old: Path) -> None:
    """Rename `new` to `to`; exchange the names in one step if possible, so that `to` exists at every moment."""
    exists = os.path.lexists(to)  # a link itself is replaced, not its target
    if exists and _exchange_names(new, to):
        return
    if exists:
        to.rename(old)
    new.rename(to)


def _exchange_names(first: Path, second: Path) -> bool:
    """Exchange two names in one step. Return whether the system did it."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc 2.28
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    return rename is not None and rename(*names, _RENAME_EXCHANGE) == 0
