"""The machine at hand as a target: memory that is free, and what a quick measurement says of its speed."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.planning.device import DeviceSpeed, TargetDevice
from lora_chat.planning.gpu_specs import LAYER_LAUNCH_SECONDS
from lora_chat.system.hardware import Hardware, free_memory_bytes

if TYPE_CHECKING:
    import torch

_PROCESS_RSS_BYTES = 760_000_000
"""RSS of a process on a CPU with all libraries at work, before weights (torch 2.13.0, transformers 5.23.0)."""
_MIN_MATMUL_FRACTION, _MAX_MATMUL_FRACTION = 0.3, 0.9
"""Shares of a plain product's speed that training comes out at."""
_GPU_MATRIX_SIZE, _CPU_MATRIX_SIZE, _NUM_TIMED_RUNS = 4096, 1536, 8
_CPU_LAYER_LAUNCH_SECONDS = 1e-3
_CPU_MATMUL_FRACTIONS = 0.3, 0.9


def detect_local_device(hardware: Hardware) -> TargetDevice:
    """What is here; on a GPU a product and a copy are timed, in less than a second."""
    if hardware.device == "cpu":
        return TargetDevice(
            "cpu",
            hardware.name,
            hardware.memory_bytes,
            min(hardware.memory_bytes, free_memory_bytes() + _process_rss_bytes()),
            _PROCESS_RSS_BYTES,
            at_hand=True,
            bfloat16=hardware.bfloat16,
        )
    import torch

    flops, bandwidth = _measure_flops_and_bandwidth(
        "cuda", torch.bfloat16 if hardware.bfloat16 else torch.float16, _GPU_MATRIX_SIZE
    )
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return TargetDevice(
        "cuda",
        hardware.name,
        total,
        total,
        # The driver's, cuBLAS's, and whatever other programs hold.
        total - free - torch.cuda.memory_reserved(),
        at_hand=True,
        speed=DeviceSpeed(
            flops,
            bandwidth,
            LAYER_LAUNCH_SECONDS,
            _MIN_MATMUL_FRACTION,
            _MAX_MATMUL_FRACTION,
            "from a product and a copy that were timed just now",
        ),
        bfloat16=hardware.bfloat16,
    )


def measure_cpu_speed(target: TargetDevice) -> TargetDevice:
    """A CPU with its speed, from a product and a copy: a second, and far less exact than a probe."""
    import torch

    flops, bandwidth = _measure_flops_and_bandwidth(
        "cpu", torch.bfloat16 if target.bfloat16 else torch.float32, _CPU_MATRIX_SIZE
    )
    source = "from a product and a copy that were timed just now; `sft` tries this machine before it begins"
    return replace(
        target, speed=DeviceSpeed(flops, bandwidth, _CPU_LAYER_LAUNCH_SECONDS, *_CPU_MATMUL_FRACTIONS, source)
    )


def _process_rss_bytes() -> int:
    """What this process holds already: it is part of the program's share."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _measure_flops_and_bandwidth(device: str, dtype: "torch.dtype", size: int) -> tuple[float, float]:
    """Operations and bytes a second."""
    import torch

    matrix = torch.randn(size, size, device=device).to(dtype)
    output = torch.empty_like(matrix)
    product = _mean_seconds(lambda: torch.mm(matrix, matrix, out=output), device)
    copy = _mean_seconds(lambda: output.copy_(matrix), device)
    return 2 * size**3 / product, 2 * matrix.numel() * matrix.element_size() / copy


def _mean_seconds(operation: Callable[[], object], device: str) -> float:
    """Mean of several runs after a first one."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    operation()
    wait()
    began = time.monotonic()
    for _ in range(_NUM_TIMED_RUNS):
        operation()
    wait()
    return (time.monotonic() - began) / _NUM_TIMED_RUNS
