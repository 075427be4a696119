"""This machine as a target device: its free memory, and its speed from a quick measurement."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.planning.device import DeviceSpeed, TargetDevice
from lora_chat.planning.gpu_specs import LAYER_LAUNCH_SECONDS
from lora_chat.system.hardware import Hardware
from lora_chat.system.memory_usage import free_memory_bytes, process_memory_bytes

if TYPE_CHECKING:
    import torch

_PROCESS_RSS_BYTES = 760_000_000
"""Resident bytes of a CPU process with all libraries in use, before weights (torch 2.13.0, transformers 5.23.0)."""
_MIN_MATMUL_FRACTION, _MAX_MATMUL_FRACTION = 0.3, 0.9
"""Range of the share of a plain matrix product's speed that training reaches."""
_GPU_MATRIX_SIZE, _CPU_MATRIX_SIZE, _NUM_TIMED_RUNS = 4096, 1536, 8
_CPU_LAYER_LAUNCH_SECONDS = 1e-3
_MEASURED_SPEED_SOURCE = "from a matrix product and a copy timed on this machine"


def detect_local_device(hardware: Hardware, processes: int = 1) -> TargetDevice:
    """Return this machine's device. On a GPU, time a matrix product and a copy, which takes less than a second.

    `processes` train on this machine: on a CPU they share its memory, and each has a GPU of its own.
    """
    if hardware.device == "cpu":
        # The other processes have memory already, which is not counted, because it is unknown here.
        free = (free_memory_bytes() + process_memory_bytes()) // processes
        return TargetDevice(
            "cpu",
            hardware.name,
            hardware.memory_bytes,
            min(hardware.memory_bytes, free),
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
        # Memory of the driver, of cuBLAS and of other programs.
        total - free - torch.cuda.memory_reserved(),
        at_hand=True,
        speed=DeviceSpeed(
            flops,
            bandwidth,
            LAYER_LAUNCH_SECONDS,
            _MIN_MATMUL_FRACTION,
            _MAX_MATMUL_FRACTION,
            _MEASURED_SPEED_SOURCE,
        ),
        bfloat16=hardware.bfloat16,
        capability=hardware.capability,
    )


def measure_cpu_speed(target: TargetDevice) -> TargetDevice:
    """Return a CPU target with its speed from a matrix product and a copy.

    This takes a second and is far less exact than a machine benchmark.
    """
    import torch

    flops, bandwidth = _measure_flops_and_bandwidth(
        "cpu", torch.bfloat16 if target.bfloat16 else torch.float32, _CPU_MATRIX_SIZE
    )
    return replace(
        target,
        speed=DeviceSpeed(
            flops,
            bandwidth,
            _CPU_LAYER_LAUNCH_SECONDS,
            _MIN_MATMUL_FRACTION,
            _MAX_MATMUL_FRACTION,
            f"{_MEASURED_SPEED_SOURCE}; `sft` benchmarks it before training",
        ),
    )


def _measure_flops_and_bandwidth(device: str, dtype: "torch.dtype", size: int) -> tuple[float, float]:
    """Return operations per second of a matrix product and bytes per second of a copy."""
    import torch

    matrix = torch.randn(size, size, device=device).to(dtype)
    output = torch.empty_like(matrix)
    product_seconds = _mean_seconds(lambda: torch.mm(matrix, matrix, out=output), device)
    copy_seconds = _mean_seconds(lambda: output.copy_(matrix), device)
    # A product of n x n matrices takes 2 n^3 operations; a copy reads and writes each byte.
    return 2 * size**3 / product_seconds, 2 * matrix.numel() * matrix.element_size() / copy_seconds


def _mean_seconds(operation: Callable[[], object], device: str) -> float:
    """Return the mean seconds of several calls after one warm-up call."""
    import torch

    def wait() -> None:
        """Wait for the GPU, because its operations run asynchronously."""
        if device == "cuda":
            torch.cuda.synchronize()

    operation()
    wait()
    started = time.monotonic()
    for _ in range(_NUM_TIMED_RUNS):
        operation()
    wait()
    return (time.monotonic() - started) / _NUM_TIMED_RUNS
