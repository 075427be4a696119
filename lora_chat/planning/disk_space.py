"""Bytes that a run writes, and whether there is room for them."""

import shutil
from pathlib import Path

from lora_chat.errors import DiskFullError

_ADAPTER_BYTES_PER_PARAMETER, _ADAM_BYTES_PER_PARAMETER = 4, 8
"""Bytes a trained parameter takes in a checkpoint: itself and Adam's two moments, all in fp32."""
_OTHER_FILES_BYTES = 2_000_000
"""Configs, random states, metrics, plot, and the history of some thousand steps."""


def checkpoint_bytes(parameters: int) -> int:
    """Of one checkpoint of an adapter with so many trained parameters."""
    return (_ADAPTER_BYTES_PER_PARAMETER + _ADAM_BYTES_PER_PARAMETER) * parameters + _OTHER_FILES_BYTES


def run_bytes(parameters: int, keep: int) -> int:
    """Most bytes that a run takes at once: one checkpoint more than it keeps, and the adapter twice."""
    return (keep + 1) * checkpoint_bytes(parameters) + 2 * _ADAPTER_BYTES_PER_PARAMETER * parameters


def check_disk_space(folder: Path, parameters: int, keep: int) -> None:
    """Raise DiskFullError if a run would not find room in its folder; what stands there already counts."""
    existing_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed, free = run_bytes(parameters, keep), shutil.disk_usage(folder).free
    if free < needed - existing_bytes:
        raise DiskFullError(
            f"Not enough space in {folder}: the run needs {needed / 1e6:.1f} MB ({keep + 1} checkpoints of "
            f"{checkpoint_bytes(parameters) / 1e6:.1f} MB at once, and the adapter), {free / 1e6:.1f} MB are free.\n"
            "Free some space, or choose another place with --set output.directory=DIR."
        )
