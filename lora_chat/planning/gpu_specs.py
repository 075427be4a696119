"""GPUs by name, with the figures of their data sheets."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lora_chat.config.plan import FAST_PATH_CAPABILITY
from lora_chat.planning.device import DeviceSpeed, TargetDevice
from lora_chat.planning.gpu_names import find_gpu_name, make_gpu_name, match_gpu_names

CUDA_CONTEXT_BYTES = 450 * 2**20
"""Bytes that the driver and cuBLAS take of a GPU: 300 to 600 MiB by driver and GPU; a local GPU is measured instead."""
LAYER_LAUNCH_SECONDS = 2e-3
"""Seconds to launch all operations of a decoder layer with LoRA, forward and backward."""
MIN_PEAK_FRACTION, MAX_PEAK_FRACTION = 0.25, 0.75
"""Range of the share of its peak that a GPU reaches in training.

torchtune's 8B runs on an RTX 4090 reach 0.68 in 4 bits and 0.87 in bf16, with long rows and no padding; short rows and
Hugging Face's layers reach less."""


@dataclass(frozen=True)
class GpuSpec:
    """The figures of a GPU's data sheet."""

    name: str
    memory: int
    """Memory, in bytes."""
    flops: float
    """Operations per second in 16-bit tensor products with fp32 sums, without sparsity."""
    bandwidth: float
    """Memory bandwidth, in bytes per second."""
    capability: tuple[int, int]
    """Compute capability, such as (8, 6)."""
    source: str
    bus: str
    """Bus to the rest of the machine, such as `PCIe 4.0 x16`."""
    nvlinks: int = 0
    """Number of NVLinks that reach all other cards of a machine; bridges between two cards do not count."""

    @property
    def bfloat16(self) -> bool:
        """Return whether the GPU multiplies bf16, which Ampere (capability 8.0) introduced."""
        return self.capability >= (8, 0)


@cache
def load_gpu_specs() -> tuple[GpuSpec, ...]:
    """Return all known GPUs."""
    table = json.loads((files("lora_chat.planning") / "gpu_specs.json").read_text(encoding="utf-8"))
    specs = []
    for row in table["gpus"]:
        major, minor = row["capability"].split(".")
        specs.append(
            GpuSpec(
                row["name"],
                row["memory_mib"] * 2**20,
                1e12 * row["tflops"],
                1e9 * row["bandwidth_gb_s"],
                (int(major), int(minor)),
                table["sources"][row["source"]],
                row["bus"],
                row.get("nvlinks", 0),
            )
        )
    return tuple(specs)


def find_gpu_spec(name: str) -> GpuSpec:
    """Return a GPU by a name such as `RTX 4090`, `4090` or `NVIDIA GeForce RTX 4090`.

    Raises UsageError if the name is unknown or means several GPUs.
    """
    specs = {spec.name: spec for spec in load_gpu_specs()}
    return specs[find_gpu_name(name, [make_gpu_name(spec.name, spec.memory) for spec in specs.values()])]


def list_memory_variants(name: str) -> tuple[GpuSpec, ...]:
    """Return the GPUs with a name such as `RTX 3060` that differ in their memory only, the smallest first.

    Empty if the name is unknown or means GPUs of several kinds.
    """
    specs = {spec.name: spec for spec in load_gpu_specs()}
    matches = match_gpu_names(name, [make_gpu_name(spec.name, spec.memory) for spec in specs.values()])
    if len({match.required for match in matches}) != 1:
        return ()
    return tuple(sorted((specs[match.name] for match in matches), key=lambda spec: spec.memory))


def target_from_gpu_spec(spec: GpuSpec) -> TargetDevice:
    """Return a GPU of this kind, all of its memory free, as a target."""
    speed = DeviceSpeed(
        spec.flops,
        spec.bandwidth,
        LAYER_LAUNCH_SECONDS,
        MIN_PEAK_FRACTION,
        MAX_PEAK_FRACTION,
        "from the GPU's data sheet, not measured",
    )
    return TargetDevice(
        "cuda",
        spec.name,
        spec.memory,
        spec.memory,
        CUDA_CONTEXT_BYTES,
        at_hand=False,
        speed=speed,
        bfloat16=spec.bfloat16,
        capability=spec.capability,
    )


def target_from_memory_size(size: int) -> TargetDevice:
    """Return an unnamed GPU with `size` bytes of memory as a target. It is planned like Ampere."""
    name = f"a GPU of {size / 2**30:g} GiB"
    return TargetDevice("cuda", name, size, size, CUDA_CONTEXT_BYTES, at_hand=False, capability=FAST_PATH_CAPABILITY)
