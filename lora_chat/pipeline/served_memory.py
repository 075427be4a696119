"""Refuse a base or an adapter that cannot fit into memory, before it is loaded."""

from dataclasses import replace
from pathlib import Path

from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import OutOfMemoryError
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.base_model import LocalBase, check_weights
from lora_chat.system.memory_usage import free_memory_bytes

_BYTES_PER_WEIGHT = {"4bit": 0.5, "8bit": 1.0}
"""Bytes of a quantized weight without its scales: less than any base needs."""
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_COPIES_OF_A_FILE = 3
"""Copies of a parcel in memory while it is checked: the file, its members, and its tensors."""
_RESERVE_BYTES = 64 * 2**20
"""Memory that stays free for requests, in bytes."""


def check_base_memory(base: LocalBase, precision: PrecisionPlan) -> None:
    """Raise OutOfMemoryError for a base whose weights exceed the free memory, however they are loaded."""
    count = sum(parameter.numel() for parameter in check_weights(base).parameters())
    needed = int(count * _BYTES_PER_WEIGHT.get(precision.mode, _ITEM_BYTES[precision.dtype]))
    free = free_bytes(precision)
    if needed > free:
        raise OutOfMemoryError(
            f"The base {base.name} needs at least {needed / 1e9:.1f} GB in {precision.mode} ({precision.dtype}), and "
            f"{free / 1e9:.1f} GB are free.",
            "end other programs, or serve it with --quantization 4bit.",
        )


def check_file_memory(path: Path) -> None:
    """Raise OutOfMemoryError for a file that is too large to be read into memory and checked there."""
    if not path.is_file():
        return
    needed, free = _COPIES_OF_A_FILE * path.stat().st_size, free_memory_bytes() - _RESERVE_BYTES
    if needed > free:
        raise OutOfMemoryError(
            f"Reading {path.name} needs {needed / 1e6:.0f} MB, and {max(0, free) / 1e6:.0f} MB are free.",
            "unload another adapter.",
        )


def read_into_memory(stored: StoredAdapter, precision: PrecisionPlan) -> StoredAdapter:
    """Return an adapter whose weights were read once, so that no file is read while requests wait.

    Raises OutOfMemoryError for one whose weights exceed the free memory.
    """
    weights = stored.read_weights()
    needed = sum(weight.numel() * weight.element_size() for weight in weights.values())
    free = free_bytes(precision) - _RESERVE_BYTES
    if needed > free:
        raise OutOfMemoryError(
            f"The adapter {stored.name} needs {needed / 1e6:.0f} MB, and {max(0, free) / 1e6:.0f} MB are free.",
            "unload another adapter.",
        )
    return replace(stored, read_weights=lambda: weights)


def free_bytes(precision: PrecisionPlan) -> int:
    """Return the free memory of the device, in bytes."""
    if precision.device == "cpu":
        return free_memory_bytes()
    import torch

    return int(torch.cuda.mem_get_info()[0])
