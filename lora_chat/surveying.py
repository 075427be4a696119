"""The machine at hand as a target: memory that is free, and what a quick measurement says of its speed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from lora_chat.planning.cards import LAUNCH
from lora_chat.planning.hardware import Hardware, free_memory
from lora_chat.planning.target import Speed, Target

_PROGRAM = 760_000_000
"""RSS of a process on a CPU with all libraries at work, before weights (torch 2.13.0, transformers 5.23.0)."""
_LOW, _HIGH = 0.3, 0.9
"""Shares of a plain product's speed that training comes out at."""
_SIZE, _TIMES = 4096, 8


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

    flops, bandwidth = _measure_gpu(hardware.bfloat16)
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


def _held() -> int:
    """What this process holds already: it is part of the program's share."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _measure_gpu(bfloat16: bool) -> tuple[float, float]:
    """Operations and bytes a second."""
    import torch

    width = torch.bfloat16 if bfloat16 else torch.float16
    square = torch.randn(_SIZE, _SIZE, device="cuda", dtype=width)
    other = torch.empty_like(square)
    product = _seconds(lambda: torch.mm(square, square, out=other))
    copy = _seconds(lambda: other.copy_(square))
    size = 2 * square.numel() * square.element_size()
    return 2 * _SIZE**3 / product, size / copy


def _seconds(work: Callable[[], object]) -> float:
    """Mean of several runs after a first one."""
    import torch

    work()
    torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(_TIMES):
        work()
    torch.cuda.synchronize()
    return (time.monotonic() - began) / _TIMES
