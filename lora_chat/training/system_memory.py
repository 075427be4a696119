"""Memory while training on a CPU: a limit that raises instead of killing, what errors mean."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEXTS = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad alloc")
_CGROUP = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says so; on a CPU PyTorch raises plain RuntimeErrors."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Make allocations beyond what is free now fail, for Linux would kill the process without a word (Linux alone)."""
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_size() + _free_memory()
    limits = [size for size in (limit, soft, hard) if size != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_size() -> int:
    """Bytes of this process that RLIMIT_DATA counts (getrlimit(2), proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmData:")).split()[1])


def _free_memory() -> int:
    """Bytes that the machine, or the container, has left; swap counts."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    machine = {words[0]: 1024 * int(words[1]) for words in lines}
    free = machine["MemAvailable:"] + machine["SwapFree:"]
    with suppress(OSError, ValueError, StopIteration):  # not in a group of cgroup v2, or its limit is "max"
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        folder = _CGROUP / next(line for line in groups if line.startswith("0::")).removeprefix("0::/")
        most = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        free = min(free, most - used + int(files.get("inactive_file", 0)))
    return free
