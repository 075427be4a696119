"""Files and folders that are there whole or not at all: written beside, synced, then renamed."""

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_chat.errors import explain_write_errors

_NO_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""What file systems say that cannot sync a folder."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)


@contextmanager
def folder_written_whole(to: Path, what: str) -> Iterator[Path]:
    """A new folder beside `to` that takes its place when the block ends well, and vanishes otherwise.

    A folder that stood there is replaced. Raises SpaceError, DiskError or RecipeError when it cannot be written.
    """
    with explain_write_errors(to, what):
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
        try:
            inside = beside / to.name  # made by us: mkdtemp's own folder is closed to everyone else
            inside.mkdir()
            yield inside
            for path in sorted(inside.rglob("*")):
                if path.is_file():  # safetensors leaves its files readable by their owner alone
                    path.chmod(inside.stat().st_mode & 0o666)
                sync(path)
            sync(inside)
            _take_place(inside, to, beside / "old")
            sync(to.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def write_text_whole(path: Path, text: str, what: str) -> None:
    """Write a text file so that readers see the old one or the new one."""
    with file_written_whole(path, what) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def file_written_whole(path: Path, what: str) -> Iterator[Path]:
    """A path beside `path` whose file takes its place when the block ends well."""
    with explain_write_errors(path, what), replacing(path) as beside:
        yield beside


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As `file_written_whole`; raises what the system says."""
    beside = part_of(path)
    try:
        yield beside
        sync(beside)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def part_of(path: Path) -> Path:
    """Where a file is while it is being written."""
    return path.with_name(f".{path.name}.part")


def sync(path: Path) -> None:
    """Have the system write a file or folder to its disk; Windows cannot open folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FOLDERS:
            raise
    finally:
        os.close(handle)


def _take_place(new: Path, to: Path, old: Path) -> None:
    """Rename; where something stands at `to`, in one step if the system can, so that it is never missing."""
    if to.exists() and _exchange(new, to):
        return
    if to.exists():
        to.rename(old)
    new.rename(to)


def _exchange(one: Path, other: Path) -> bool:
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc 2.28
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return rename is not None and rename(*names, _RENAME_EXCHANGE) == 0
