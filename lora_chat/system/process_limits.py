"""Limits that a process sets for itself before it runs a stranger's template."""

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
    """Forbid this process to write files and core dumps from now on."""
    for name in ("RLIMIT_FSIZE", "RLIMIT_CORE"):
        _set_soft_limit(name, 0)


@contextmanager
def time_and_memory_limit(seconds: float, memory: int, start: int) -> Iterator[None]:
    """End this process if the block takes more than `seconds`; raise MemoryError beyond `memory` bytes.

    `memory` is added to `start` bytes of address space. The timer is a thread in C, so it also ends a process during
    one long operation of the interpreter, and it works without a parent process.
    """
    _limit_memory(start + memory)
    _limit_cpu_time(seconds)
    with Path(os.devnull).open("w") as null_device:
        faulthandler.dump_traceback_later(seconds, exit=True, file=null_device)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            _limit_memory(None)


def _limit_memory(maximum: int | None) -> None:
    """Limit the address space and the data of this process, in bytes; None removes the limit."""
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        _set_soft_limit(name, maximum)


def _limit_cpu_time(seconds: float) -> None:
    """Limit the processor time from now on, in case the timer fails."""
    _set_soft_limit("RLIMIT_CPU", int(time.process_time() + seconds) + 2)


def _set_soft_limit(name: str, maximum: int | None) -> None:
    """Set a soft limit within the hard one; None raises it to the hard limit."""
    limit = getattr(_resource, name, None)
    if limit is None:
        return
    with suppress(ValueError, OSError):  # macOS defines some limits without supporting them
        _, hard = _resource.getrlimit(limit)
        wanted = hard if maximum is None else maximum if hard == _resource.RLIM_INFINITY else min(maximum, hard)
        _resource.setrlimit(limit, (wanted, hard))
