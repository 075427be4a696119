"""How a device attends by segments: in padded blocks on a CPU, by variable-length flash attention on a GPU."""

import torch

from lora_chat.training.fast_path.attention.cpu import Heads, attend_blocks, blocks_gradient
from lora_chat.training.fast_path.attention.gather_index import HeadRows, find_rows
from lora_chat.training.fast_path.attention.gpu import VarlenRows, attend_varlen, find_varlen, varlen_gradient

Layout = HeadRows | VarlenRows


def find_layout(edges: tuple[int, ...], prefix: int, heads: Heads, device: torch.device) -> Layout:
    """Where the segments of a flat micro-batch stand, as its device wants to know it."""
    if device.type == "cpu":
        return find_rows(edges, prefix, heads.query, heads.key)
    return find_varlen(edges, prefix, device)


def attend(states: torch.Tensor, heads: Heads, layout: Layout) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """States (tokens, query + 2 * key heads, size) -> (tokens, query heads, size), and what the gradient needs."""
    if isinstance(layout, VarlenRows):
        return attend_varlen(states, heads, layout)
    return attend_blocks(states, heads, layout)


def attend_gradient(above: torch.Tensor, kept: list[torch.Tensor], heads: Heads, layout: Layout) -> torch.Tensor:
    """Gradient of the states."""
    if isinstance(layout, VarlenRows):
        return varlen_gradient(above, kept)
    return blocks_gradient(above, kept, heads, layout)
