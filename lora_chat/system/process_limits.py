"""Limits that a process sets itself before it does what a stranger wrote."""

import faulthandler
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import resource as _resource
except ImportError:  # Windows: the time limit works without it
    _resource = None  # type: ignore[assignment]


def forbid_file_writes() -> None:
    """Let this process write no file and leave no core dump from now on."""
    for name in ("RLIMIT_FSIZE", "RLIMIT_CORE"):
        _set_soft_limit(name, 0)


@contextmanager
def time_and_memory_limit(seconds: float, memory: int, start: int) -> Iterator[None]:
    """End this process if the block takes more than so many seconds; raise MemoryError beyond `memory` bytes.

    `memory` counts on top of `start` bytes of address space. The watch is a thread in C, so it also ends a process
    that is inside one long operation of the interpreter, and it needs no parent process that is still there.
    """
    _limit_memory(start + memory)
    _limit_cpu_time(seconds)
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            _limit_memory(None)


def _limit_memory(maximum: int | None) -> None:
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        _set_soft_limit(name, maximum)


def _limit_cpu_time(seconds: float) -> None:
    """Bound the processor time from here on, should the watch fail."""
    _set_soft_limit("RLIMIT_CPU", int(time.process_time() + seconds) + 2)


def _set_soft_limit(name: str, maximum: int | None) -> None:
    """Set a soft limit within the hard one; None: as high as that allows."""
    limit = getattr(_resource, name, None)
    if limit is None:
        return
    with suppress(ValueError, OSError):  # macOS knows some limits by name only
        _, hard = _resource.getrlimit(limit)
        wanted = hard if maximum is None else maximum if hard == _resource.RLIM_INFINITY else min(maximum, hard)
        _resource.setrlimit(limit, (wanted, hard))
