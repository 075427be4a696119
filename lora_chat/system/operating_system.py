"""The operating system, as far as its GPU driver behaves differently."""

import sys
from collections.abc import MutableMapping
from pathlib import Path

_PROC_VERSION = Path("/proc/version")
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Names of the variable since PyTorch 2.9, before, and for ROCm."""


def is_wsl() -> bool:
    """Return whether this is Linux under Windows (WSL)."""
    if sys.platform != "linux":
        return False
    try:
        return "microsoft" in _PROC_VERSION.read_text(encoding="ascii", errors="replace").lower()
    except OSError:
        return False


def let_segments_grow(environment: MutableMapping[str, str]) -> None:
    """Let PyTorch's allocator on a GPU extend its segments, which leaves fewer gaps, unless the user configured it.

    Windows lacks the function of the driver, and some drivers for WSL fail in it
    (https://github.com/pytorch/pytorch/issues/192330). Call this before PyTorch is imported.
    """
    if sys.platform == "linux" and not is_wsl() and not any(name in environment for name in _ALLOCATOR_VARIABLES):
        environment[_ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
