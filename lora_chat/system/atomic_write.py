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
from lora_chat.system.regular_files import open_regular
from lora_chat.system.shared_folders import pinned, pinned_new

_NO_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""What file systems say that cannot sync a folder."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)
_PART = ".part"
_NAME_LENGTH = 40
"""Characters of a file's name that its temporary file repeats; 255 bytes are the most that file systems take."""
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


@contextmanager
def folder_written_whole(to: Path, what: str, *, shared: bool = False) -> Iterator[Path]:
    """A new folder beside `to` that takes its place when the block ends well, and vanishes otherwise.

    A folder that stood there is replaced. With `shared` its final modes follow the umask; otherwise they are 0700 and
    0600. Where any user can rename folders, the path in the block leads through /proc. Raises SpaceError, DiskError or
    RecipeError when it cannot be written, IntegrityError when somebody has put another folder in its place meanwhile.
    """
    with explain_write_errors(to, what):
        make_parents(to)
        with pinned(to.parent) as parent:
            beside = Path(tempfile.mkdtemp(prefix=f".{to.name[:_NAME_LENGTH]}-", dir=parent))
            made = os.lstat(beside)
            try:
                with pinned_new(beside) as closed:
                    try:
                        inside = closed / to.name  # made by us: mkdtemp's own folder is closed to everyone else
                        inside.mkdir(mode=0o777 if shared else _PRIVATE_FOLDER)
                        yield inside
                        _finish(inside, shared=shared)
                        _check_same(made, beside)
                        _take_place(inside, parent / to.name, closed / "old")
                        sync(parent)
                    finally:
                        if closed != beside:  # wherever it has been moved to meanwhile
                            _empty(closed)
            finally:
                shutil.rmtree(beside, ignore_errors=True)


def make_parents(path: Path) -> None:
    """Make the folders above a path that are missing; others cannot write to them, whatever the umask."""
    for folder in reversed(path.parents):
        if not folder.is_dir():
            folder.mkdir(mode=0o755, exist_ok=True)


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        if stat.S_ISDIR(left.lstat().st_mode):
            shutil.rmtree(left, ignore_errors=True)
        else:  # rmtree would wait for a FIFO
            with suppress(OSError):
                left.unlink()


def _finish(inside: Path, *, shared: bool) -> None:
    """Set the final modes and have all of it written to the disk."""
    bits = inside.stat().st_mode & 0o666
    for path in sorted(inside.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):  # safetensors leaves its files readable by their owner alone
            path.chmod(bits)
        elif stat.S_ISDIR(mode) and not shared:
            path.chmod(_PRIVATE_FOLDER)
        sync(path)
    sync(inside)


def write_text_whole(path: Path, text: str, what: str) -> None:
    """Write a text file that its owner alone can read, so that readers see the old one or the new one."""
    with file_written_whole(path, what) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def file_written_whole(path: Path, what: str, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """An open file beside `path` that takes its place when the block ends well; its `name` is where it is until then.

    With `shared` its final mode follows the umask; otherwise it is 0600.
    """
    with explain_write_errors(path, what), replacing(path, shared=shared) as file:
        yield file


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """As `file_written_whole`; raises what the system says."""
    beside = path.with_name(f".{path.name[:_NAME_LENGTH]}.{secrets.token_hex(8)}{_PART}")
    try:
        with open(beside, "wb", opener=_create) as file:
            yield file
            file.flush()
            if shared and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
            made = os.fstat(file.fileno())
        _check_same(made, beside)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def is_part(path: Path) -> bool:
    """Whether a path is named as files are while they are being written; killed processes leave them behind."""
    return path.name.startswith(".") and path.name.endswith(_PART)


def open_to_append(path: Path) -> IO[str]:
    """Open a text file of ours to append to, created with mode 0600. Raises IntegrityError for a link or no file."""
    return os.fdopen(open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")


@contextmanager
def private_modes() -> Iterator[None]:
    """Have everything that this process creates meanwhile be for its owner alone, whoever creates it."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def sync(path: Path) -> None:
    """Have the system write a file or folder to its disk; Windows cannot open folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FOLDERS:
            raise
    finally:
        os.close(handle)


def _create(name: str, _flags: int) -> int:
    """Create a file that is not there yet, and follow no link that somebody may have put at its name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for more in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # not every system has all of them
        flags |= getattr(os, more, 0)
    return os.open(name, flags, _PRIVATE_FILE)


def _umask() -> int:
    """Read the umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _check_same(made: os.stat_result, beside: Path) -> None:
    """Raise IntegrityError unless what is at a temporary name is still what was created there."""
    try:
        found = os.lstat(beside)
    except FileNotFoundError:
        found = None
    if found is None or (found.st_dev, found.st_ino) != (made.st_dev, made.st_ino):
        raise IntegrityError(
            f"Somebody replaced {beside} while it was being written; nothing was kept.\n"
            f"Other users can rename files in {beside.parent}: choose another folder, or close it (chmod go-w)."
        )


def _take_place(new: Path, to: Path, old: Path) -> None:
    """Rename; where something stands at `to`, in one step if the system can, so that it is never missing."""
    stands = os.path.lexists(to)  # a link is replaced itself, wherever it leads
    if stands and _exchange(new, to):
        return
    if stands:
        to.rename(old)
    new.rename(to)


def _exchange(one: Path, other: Path) -> bool:
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc 2.28
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return rename is not None and rename(*names, _RENAME_EXCHANGE) == 0
