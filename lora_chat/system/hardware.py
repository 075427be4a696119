"""The device, memory and threads of this machine."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_chat.system.memory_usage import total_memory_bytes


@dataclass(frozen=True)
class Hardware:
    """The device that a run would use."""

    device: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    """Memory of the GPU, or of the machine for the CPU, in bytes."""
    bfloat16: bool
    """Whether the device multiplies bf16 natively; emulated bf16 is slower than fp32."""
    threads: int
    index: int | None = None
    """Number of the CUDA device; None for a CPU."""
    capability: tuple[int, int] | None = None
    """Compute capability of the CUDA device, such as (8, 6); None for a CPU."""


def detect_hardware() -> Hardware:
    """Detect the first CUDA device, or the CPU if there is none."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Hardware(
            device="cuda",
            name=properties.name,
            memory_bytes=properties.total_memory,
            bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
            threads=torch.get_num_threads(),
            index=0,
            capability=(properties.major, properties.minor),
        )
    name, flags = _read_cpu_description()
    return Hardware(
        device="cpu",
        name=name,
        memory_bytes=total_memory_bytes(),
        bfloat16=_has_bfloat16(flags),
        threads=torch.get_num_threads(),
    )


def has_cpu_bfloat16() -> bool:
    """Return whether the CPU multiplies bf16 natively, on a machine with or without a GPU."""
    return _has_bfloat16(_read_cpu_description()[1])


def _has_bfloat16(flags: set[str]) -> bool:
    """Return whether a CPU with these feature flags multiplies bf16 natively."""
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _read_cpu_description() -> tuple[str, set[str]]:
    """Return the CPU's name and feature flags; there are no flags outside Linux, so fp32 is used there."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name") or platform.machine(), flags
