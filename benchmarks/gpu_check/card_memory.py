"""Make the card of this process smaller or fuller than it is."""

import os
from typing import Any

CONTEXT_BYTES = 450 * 2**20
"""Memory of the driver on an emulated smaller card, in bytes; the planner assumes the same for other cards."""


def emulate_smaller_card(total: int) -> None:
    """Let the card have `total` bytes, of which the driver takes its usual part."""
    _set_memory(total, max(total - CONTEXT_BYTES, total // 2))


def leave_free(usable: int) -> None:
    """Let other programs use all of the card but `usable` bytes."""
    import torch

    _set_memory(torch.cuda.mem_get_info()[1], usable)


def _set_memory(total: int, usable: int) -> None:
    """Let allocations beyond `usable` bytes fail, and report a card of `total` bytes."""
    import torch

    if os.environ.get("GPU_CHECK_FAKE_CARD"):
        torch.cuda.current_device()  # starts CUDA
        torch.ops.fake_card.set_memory(0, total, total - usable)
        return
    _, real_total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, usable / real_total))

    def report_memory(device: Any = None) -> tuple[int, int]:
        """Return the free and the total bytes of the emulated card."""
        return max(0, usable - torch.cuda.memory_reserved()), total

    torch.cuda.mem_get_info = report_memory
