"""Files that running programs of this user have open or mapped into memory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROCESSES = Path("/proc")


def list_open_files(folder: Path) -> set[Path]:
    """Return the files in a resolved folder that are open or mapped in a process that this user can inspect.

    Return nothing on systems without /proc.
    """
    prefix = f"{folder}{os.sep}"
    files: set[Path] = set()
    with suppress(OSError):
        for process in _PROCESSES.iterdir():
            if process.name.isdecimal():
                files |= {Path(name) for name in _list_names(process) if name.startswith(prefix)}
    return files


def _list_names(process: Path) -> Iterator[str]:
    """Yield the names of all files of a process; it may end in the meantime."""
    with suppress(OSError):
        for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
            yield line.partition("/")[1] + line.partition("/")[2]
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                yield str(link.readlink())
    with suppress(OSError):
        yield f"{(process / 'cwd').readlink()}{os.sep}"
