"""What this machine offers to a run."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CGROUP, _MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")


@dataclass(frozen=True)
class Hardware:
    """The device that a run would use."""

    device: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    """GPU memory, or the machine's memory on the CPU."""
    bfloat16: bool
    """Whether the processor multiplies bf16 natively; emulated bf16 is slower than fp32."""
    threads: int


def detect_hardware() -> Hardware:
    """Look at this machine; the first CUDA device wins over the CPU."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Hardware(
            device="cuda",
            name=properties.name,
            memory_bytes=properties.total_memory,
            bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
            threads=torch.get_num_threads(),
        )
    name, flags = _cpu_description()
    return Hardware(
        device="cpu",
        name=name,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0,
        bfloat16=bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        threads=torch.get_num_threads(),
    )


def _cpu_description() -> tuple[str, set[str]]:
    """Name and feature flags from Linux; elsewhere no flags, so fp32 is used."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name") or platform.machine(), flags


def free_memory_bytes() -> int:
    """Bytes that the machine, or the container, has left; swap counts. Elsewhere than on Linux, all that it has."""
    if not _MEMINFO.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
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
