"""Memory of the machine, of this process and of its GPU, in bytes."""

import sys
from contextlib import suppress
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def total_memory_bytes() -> int:
    """Return the memory of the machine, in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def free_memory_bytes() -> int:
    """Return the memory and swap that the machine has left, or the container if it has less, in bytes."""
    import psutil

    free = int(psutil.virtual_memory().available) + int(psutil.swap_memory().free)
    # psutil does not know cgroups. There is no limit outside of cgroup v2, or if the limit is "max".
    with suppress(OSError, ValueError, StopIteration):
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        folder = _CGROUP_ROOT / next(line for line in groups if line.startswith("0::")).removeprefix("0::/")
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(statistics.get("inactive_file", 0)))
    return free


def process_memory_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def address_space_bytes() -> int:
    """Return the address space that this process uses, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().vms)


def peak_process_bytes() -> int:
    """Return the peak resident memory of this process, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # psutil has no peak on Linux and macOS

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory_bytes() -> int:
    """Return the peak memory that PyTorch used on the GPU, or that this process used if there is no GPU, in bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_process_bytes()


def peak_reserved_bytes() -> int:
    """Return the peak memory taken from the GPU, in bytes, with the driver's share and PyTorch's unused blocks.

    Without a GPU it is the peak memory of this process.
    """
    import torch

    if not torch.cuda.is_available():
        return peak_memory_bytes()
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved())
