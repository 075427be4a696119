"""GPUs by name, with the figures of their data sheets."""

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lora_chat.errors import UsageError
from lora_chat.planning.device import DeviceSpeed, TargetDevice

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
    bfloat16: bool
    source: str


@cache
def load_gpu_specs() -> tuple[GpuSpec, ...]:
    """Return all known GPUs."""
    rows = json.loads((files("lora_chat.planning") / "cards.json").read_text(encoding="utf-8"))
    return tuple(
        GpuSpec(
            row["name"],
            row["memory_mib"] * 2**20,
            1e12 * row["tflops"],
            1e9 * row["bandwidth_gb_s"],
            row["bfloat16"],
            row["source"],
        )
        for row in rows
    )


def find_gpu_spec(name: str) -> GpuSpec:
    """Return a GPU by a name such as `RTX 4090`, `4090` or `NVIDIA GeForce RTX 4090`. Raise UsageError if unknown."""
    normalized_name = _normalize_gpu_name(name)
    specs_by_name = {_normalize_gpu_name(spec.name): spec for spec in load_gpu_specs()}
    if normalized_name in specs_by_name:
        return specs_by_name[normalized_name]
    matching = [spec for key, spec in specs_by_name.items() if normalized_name and key.startswith(normalized_name)]
    if len(matching) == 1:
        return matching[0]
    close = difflib.get_close_matches(normalized_name, list(specs_by_name), n=3, cutoff=0.5)
    suggestions = [spec.name for spec in matching or [specs_by_name[key] for key in close] or load_gpu_specs()]
    raise UsageError(
        f"--gpu {name}: unknown GPU. Similar names: {', '.join(suggestions)}.\n"
        "Fix: for any other GPU give its memory, for example --memory 12GiB."
    )


def target_from_gpu_spec(spec: GpuSpec) -> TargetDevice:
    """Return a GPU of this kind, all of its memory free, as a target."""
    speed = DeviceSpeed(
        spec.flops,
        spec.bandwidth,
        LAYER_LAUNCH_SECONDS,
        MIN_PEAK_FRACTION,
        MAX_PEAK_FRACTION,
        f"from the GPU's data sheet ({spec.source}), not measured",
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
    )


def target_from_memory_size(size: int) -> TargetDevice:
    """Return an unnamed GPU with `size` bytes of memory as a target."""
    return TargetDevice("cuda", f"a GPU of {size / 2**30:g} GiB", size, size, CUDA_CONTEXT_BYTES, at_hand=False)


def _normalize_gpu_name(name: str) -> str:
    """Return a name in lower case without vendor, brand, spaces and a leading `rtx`."""
    parts = re.sub(r"[^a-z0-9]", " ", name.lower()).split()
    plain = "".join(part for part in parts if part not in ("nvidia", "geforce", "graphics"))
    return plain.removeprefix("rtx") if plain.startswith("rtx") else plain
