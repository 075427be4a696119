"""The device, memory and threads of this machine."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_chat.errors import UnavailableError, first_line
from lora_chat.system.device_choice import RECIPE_CPU_OPTION, VARIABLE_CPU_OPTION, choose_device
from lora_chat.system.memory_usage import total_memory_bytes
from lora_chat.system.torch_build import read_torch_build


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
    """Compute capability of the CUDA device, such as (8, 6); None for a CPU and for AMD cards."""


def detect_hardware(device: str | None = None) -> Hardware:
    """Choose and describe the device of this process.

    `device` is the recipe's `base.device`; None is for commands without a recipe. Raises the errors of `choose_device`,
    and UnavailableError for a card that PyTorch cannot use.
    """
    choice = choose_device(device)
    if not choice.uses_cuda:
        return describe_cpu()
    return _describe_card(choice.index, RECIPE_CPU_OPTION if device is not None else VARIABLE_CPU_OPTION)


def describe_cpu() -> Hardware:
    """Describe the CPU, whether or not there is a GPU too."""
    import torch

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


def _describe_card(index: int, cpu_option: str) -> Hardware:
    """Describe a card, which starts CUDA."""
    import torch

    build = read_torch_build()
    try:
        properties = torch.cuda.get_device_properties(index)
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    except (RuntimeError, AssertionError) as error:  # a card in exclusive use, or without memory for a context
        raise UnavailableError(
            f"CUDA does not start: {first_line(error)}.\nTo use the CPU instead: {cpu_option}"
        ) from error
    capability = properties.major, properties.minor
    if not build.has_kernels_for(capability):
        raise UnavailableError(
            f"{build.name} has no kernels for the {properties.name}, which has compute capability "
            f"{capability[0]}.{capability[1]}: the build has {', '.join(build.architectures)}.\n"
            f"To use the CPU instead: {cpu_option}"
        )
    return Hardware(
        device="cuda",
        name=properties.name,
        memory_bytes=properties.total_memory,
        bfloat16=bfloat16,
        threads=torch.get_num_threads(),
        index=index,
        capability=None if build.rocm else capability,
    )


def _read_cpu_description() -> tuple[str, set[str]]:
    """Return the CPU's name and feature flags; there are no flags outside Linux, so fp32 is used there."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name") or platform.machine(), flags
