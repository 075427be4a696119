"""Choice of the attention backend: padded blocks on a CPU, variable-length flash attention on a GPU."""

import torch

from lora_chat.training.fast_path.attention.cpu import HeadConfig, blocked_attention_backward, blocked_attention_forward
from lora_chat.training.fast_path.attention.gather_index import BlockedLayout, build_blocked_layout
from lora_chat.training.fast_path.attention.gpu import (
    VarlenLayout,
    build_varlen_layout,
    varlen_attention_backward,
    varlen_attention_forward,
)

AttentionLayout = BlockedLayout | VarlenLayout
"""Positions of the sequences of a packed batch, in the form that the backend needs."""


def build_attention_layout(
    cu_seqlens: tuple[int, ...], prefix: int, heads: HeadConfig, device: torch.device
) -> AttentionLayout:
    """Build the layout of a packed batch for its device."""
    if device.type == "cpu":
        return build_blocked_layout(cu_seqlens, prefix, heads.num_heads, heads.num_kv_heads)
    return build_varlen_layout(cu_seqlens, prefix, device)


def attention_forward(
    states: torch.Tensor, heads: HeadConfig, layout: AttentionLayout
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return attention (tokens, query heads, size) and the tensors that its gradient needs.

    `states` are query, key and value (tokens, query + 2 * key heads, size).
    """
    if isinstance(layout, VarlenLayout):
        return varlen_attention_forward(states, heads, layout)
    return blocked_attention_forward(states, heads, layout)


def attention_backward(
    grad_out: torch.Tensor, saved: list[torch.Tensor], heads: HeadConfig, layout: AttentionLayout
) -> torch.Tensor:
    """Return the gradient of the states."""
    if isinstance(layout, VarlenLayout):
        return varlen_attention_backward(grad_out, saved)
    return blocked_attention_backward(grad_out, saved, heads, layout)
