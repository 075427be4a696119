"""GPUs by name, with the figures of their makers' papers."""

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lora_chat.errors import RecipeError
from lora_chat.planning.device import DeviceSpeed, TargetDevice

CUDA_CONTEXT_BYTES = 450 * 2**20
"""Bytes that the driver and cuBLAS take of a card; 300 to 600 MiB by driver and card, and measured where one is."""
LAYER_LAUNCH_SECONDS = 2e-3
"""Seconds to start all operations of a decoder layer with LoRA, forward and backward."""
MIN_PEAK_FRACTION, MAX_PEAK_FRACTION = 0.25, 0.75
"""Share of its peak that training comes out at. torchtune's 8B runs on an RTX 4090 reach 0.68 in 4 bits and 0.87 in
bf16, with long rows and no padding; short rows and Hugging Face's layers reach less."""


@dataclass(frozen=True)
class GpuSpec:
    """What a maker says of a card."""

    name: str
    memory: int
    """Bytes."""
    flops: float
    """16-bit tensor products with fp32 sums, without sparsity."""
    bandwidth: float
    """Bytes a second."""
    bfloat16: bool
    source: str


@cache
def load_gpu_specs() -> tuple[GpuSpec, ...]:
    """All that are known."""
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
    """`RTX 4090`, `4090`, `rtx4090` or `NVIDIA GeForce RTX 4090`; raises RecipeError for one that is not known."""
    normalized_name = _normalize_gpu_name(name)
    specs_by_name = {_normalize_gpu_name(card.name): card for card in load_gpu_specs()}
    if normalized_name in specs_by_name:
        return specs_by_name[normalized_name]
    matching = [card for key, card in specs_by_name.items() if normalized_name and key.startswith(normalized_name)]
    if len(matching) == 1:
        return matching[0]
    close = difflib.get_close_matches(normalized_name, list(specs_by_name), n=3, cutoff=0.5)
    suggestions = [card.name for card in matching or [specs_by_name[key] for key in close] or load_gpu_specs()]
    raise RecipeError(
        f"--gpu {name}: no such card is known here. Near are: {', '.join(suggestions)}.\n"
        "Any other one: --memory 12GiB, with the memory it has."
    )


def target_from_gpu_spec(card: GpuSpec) -> TargetDevice:
    """A card that has nothing else to do."""
    speed = DeviceSpeed(
        card.flops,
        card.bandwidth,
        LAYER_LAUNCH_SECONDS,
        MIN_PEAK_FRACTION,
        MAX_PEAK_FRACTION,
        f"from the card's figures ({card.source}), not measured on it",
    )
    return TargetDevice(
        "cuda",
        card.name,
        card.memory,
        card.memory,
        CUDA_CONTEXT_BYTES,
        at_hand=False,
        speed=speed,
        bfloat16=card.bfloat16,
    )


def target_from_memory_size(size: int) -> TargetDevice:
    """Some card with so much memory."""
    return TargetDevice("cuda", f"a GPU of {size / 2**30:g} GiB", size, size, CUDA_CONTEXT_BYTES, at_hand=False)


def _normalize_gpu_name(name: str) -> str:
    words = re.sub(r"[^a-z0-9]", " ", name.lower()).split()
    plain = "".join(word for word in words if word not in ("nvidia", "geforce", "graphics"))
    return plain.removeprefix("rtx") if plain.startswith("rtx") else plain
