"""Disk space that a run needs, and the check that it is free."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lora_chat.errors import DiskFullError

_ADAPTER_BYTES_PER_PARAMETER, _ADAM_BYTES_PER_PARAMETER = 4, 8
"""Bytes of a trained parameter in a checkpoint: the parameter and Adam's two moments, all in fp32."""
_OTHER_FILES_BYTES = 2_000_000
"""Bytes of configs, random states, metrics, plot, and the history of some thousand steps."""


def checkpoint_bytes(parameters: int) -> int:
    """Return the bytes of one checkpoint of an adapter with this many trained parameters."""
    return (_ADAPTER_BYTES_PER_PARAMETER + _ADAM_BYTES_PER_PARAMETER) * parameters + _OTHER_FILES_BYTES


def run_bytes(parameters: int, keep: int, step_copies: int = 0) -> int:
    """Return the peak bytes of a run folder: one checkpoint more than it keeps, and the adapter twice.

    `step_copies` is the number of further copies of the trained weights, from which the best step is chosen.
    """
    return (keep + 1) * checkpoint_bytes(parameters) + (2 + step_copies) * _ADAPTER_BYTES_PER_PARAMETER * parameters


def check_disk_space(
    folder: Path, parameters: int, keep: int, kept_folders: Sequence[Path] = (), step_copies: int = 0
) -> None:
    """Raise DiskFullError if the disk of `folder` is too small for a run.

    Existing files of the run count as room, except for those in `kept_folders`, which the run does not write again.
    """
    existing_bytes = sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not any(path.is_relative_to(other) for other in kept_folders)
    )
    needed, free = run_bytes(parameters, keep, step_copies), shutil.disk_usage(folder).free
    if free < needed - existing_bytes:
        copies = f"{step_copies} copies of measured steps, " if step_copies else ""
        raise DiskFullError(
            f"Not enough disk space in {folder}: the run needs {needed / 1e6:.1f} MB ({keep + 1} checkpoints of "
            f"{checkpoint_bytes(parameters) / 1e6:.1f} MB, {copies}and the adapter), {free / 1e6:.1f} MB are free.\n"
            "Fix: free some space, or choose another folder with --set output.directory=DIR."
        )
