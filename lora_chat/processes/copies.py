"""Copies of the first process's tensors, for values that a decomposition may round differently on another device."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_chat.processes.group import ProcessGroup

if TYPE_CHECKING:
    import torch


def copy_from_first(tensors: "Iterable[torch.Tensor]", group: ProcessGroup) -> None:
    """Replace contiguous tensors in all processes by those of the first one, bit by bit."""
    import torch

    if group.size == 1:
        return
    for tensor in tensors:
        values = tensor.detach().view(torch.uint8)
        if not group.is_first:
            values.zero_()
        group.sum_(values)
