"""The machine at hand as a target: memory that is free, and what a quick measurement says of its speed."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.planning.device import Speed, Target
from lora_chat.planning.gpu_specs import LAUNCH
from lora_chat.system.hardware import Hardware, free_memory

if TYPE_CHECKING:
    import torch

_PROGRAM = 760_000_000
"""RSS of a process on a CPU with all libraries at work, before weights (torch 2.13.0, transformers 5.23.0)."""
_LOW, _HIGH = 0.3, 0.9
"""Shares of a plain product's speed that training comes out at."""
_SIZE, _CPU_SIZE, _TIMES = 4096, 1536, 8
_CPU_LAUNCH = 1e-3
_CPU_SHARES = 0.3, 0.9


def survey_machine(hardware: Hardware) -> Target:
    """What is here; on a GPU a product and a copy are timed, in less than a second."""
    if hardware.device == "cpu":
        return Target(
            "cpu",
            hardware.name,
            hardware.memory_bytes,
            min(hardware.memory_bytes, free_memory() + _held()),
            _PROGRAM,
            at_hand=True,
            bfloat16=hardware.bfloat16,
        )
    import torch

    flops, bandwidth = _measure("cuda", torch.bfloat16 if hardware.bfloat16 else torch.float16, _SIZE)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return Target(
        "cuda",
        hardware.name,
        total,
        total,
        # The driver's, cuBLAS's, and whatever other programs hold.
        total - free - torch.cuda.memory_reserved(),
        at_hand=True,
        speed=Speed(flops, bandwidth, LAUNCH, _LOW, _HIGH, "from a product and a copy that were timed just now"),
        bfloat16=hardware.bfloat16,
    )


def time_processor(target: Target) -> Target:
    """A CPU with its speed, from a product and a copy: a second, and far less exact than a probe."""
    import torch

    flops, bandwidth = _measure("cpu", torch.bfloat16 if target.bfloat16 else torch.float32, _CPU_SIZE)
    source = "from a product and a copy that were timed just now; `sft` tries this machine before it begins"
    return replace(target, speed=Speed(flops, bandwidth, _CPU_LAUNCH, *_CPU_SHARES, source))


def _held() -> int:
    """What this process holds already: it is part of the program's share."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _measure(device: str, dtype: "torch.dtype", size: int) -> tuple[float, float]:
    """Operations and bytes a second."""
    import torch

    square = torch.randn(size, size, device=device).to(dtype)
    other = torch.empty_like(square)
    product = _seconds(lambda: torch.mm(square, square, out=other), device)
    copy = _seconds(lambda: other.copy_(square), device)
    return 2 * size**3 / product, 2 * square.numel() * square.element_size() / copy


def _seconds(work: Callable[[], object], device: str) -> float:
    """Mean of several runs after a first one."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    wait()
    began = time.monotonic()
    for _ in range(_TIMES):
        work()
    wait()
    return (time.monotonic() - began) / _TIMES
