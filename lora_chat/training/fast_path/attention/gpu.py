"""Attention over packed batches on a GPU, by PyTorch's variable-length flash attention, which needs no extra package.

A shared prefix occurs once among the queries, and in front of every sequence among the keys. The kernel aligns the ends
of queries and keys, so attention is causal after the prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from lora_chat.training.fast_path.attention.cpu import HeadConfig
from lora_chat.training.fast_path.attention.varlen_kernel import find_varlen_kernel

_MAX_HEAD_DIM = 256
"""Largest head size that the kernel supports."""
_HEAD_DIM_STEP = 8
"""Factor that every head size must have for the kernel."""


@dataclass(frozen=True)
class VarlenLayout:
    """Borders of the sequences of a packed batch, on its device."""

    cu_seqlens_q: torch.Tensor
    """Borders of the queries, (sequences + 1,), int32."""
    cu_seqlens_k: torch.Tensor
    """Borders of the keys, (sequences + 1,), int32."""
    max_seqlen_q: int
    max_seqlen_k: int
    key_tokens: torch.Tensor | None = None
    """Packed token of every key slot, (keys,); None if keys and queries have the same order."""
    token_key_slots: torch.Tensor | None = None
    """Key slot of every packed token, (tokens,), without copies."""
    prefix_copy_slots: torch.Tensor | None = None
    """Key slots of the copies of the prefix, (sequences - 1, prefix)."""


def supports_varlen(states: torch.Tensor) -> bool:
    """Return whether the kernel supports the type and the head size of states (..., size)."""
    size = states.shape[-1]
    return states.dtype in (torch.bfloat16, torch.float16) and size <= _MAX_HEAD_DIM and size % _HEAD_DIM_STEP == 0


@lru_cache(maxsize=64)
def build_varlen_layout(cu_seqlens: tuple[int, ...], prefix: int, device: torch.device) -> VarlenLayout:
    """Build the borders for the kernel from packed borders (sequences + 1) and the length of a shared prefix."""

    def to_device(values: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    queries = [end - start for start, end in pairwise(cu_seqlens)]
    cu_seqlens_q = to_device(cu_seqlens, torch.int32)
    if not prefix:
        return VarlenLayout(cu_seqlens_q, cu_seqlens_q, max(queries), max(queries))
    # Lay out the keys: every sequence except the first begins with a copy of the prefix.
    keys: list[int] = []
    own: list[int] = []
    copies: list[int] = []
    cu_seqlens_k = [0]
    for number, (start, end) in enumerate(pairwise(cu_seqlens)):
        if number:
            copies += range(len(keys), len(keys) + prefix)
            keys += range(prefix)
        own += range(len(keys), len(keys) + end - start)
        keys += range(start, end)
        cu_seqlens_k.append(len(keys))
    longest = max(end - start for start, end in pairwise(cu_seqlens_k))
    return VarlenLayout(
        cu_seqlens_q,
        to_device(cu_seqlens_k, torch.int32),
        max(queries),
        longest,
        to_device(keys),
        to_device(own),
        to_device(copies).view(-1, prefix),
    )


def varlen_attention(states: torch.Tensor, heads: HeadConfig, layout: VarlenLayout) -> torch.Tensor:
    """Return attention (tokens, query heads, size) for states (tokens, query + 2 * key heads, size)."""
    queries, key_values = torch.split(states, [heads.num_heads, 2 * heads.num_kv_heads], dim=1)
    if layout.key_tokens is not None:
        key_values = _PrependPrefix.apply(key_values, layout)  # type: ignore[no-untyped-call]
    keys, values = key_values.chunk(2, dim=1)
    borders = layout.cu_seqlens_q, layout.cu_seqlens_k, layout.max_seqlen_q, layout.max_seqlen_k
    return find_varlen_kernel(states.device, states.dtype)(queries, keys, values, borders, heads)


def varlen_attention_forward(
    states: torch.Tensor, heads: HeadConfig, layout: VarlenLayout
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return attention and the tensors that its gradient needs, which keep the kernel's own autograd graph."""
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        attn_out = varlen_attention(leaf, heads, layout)
    return attn_out.detach(), [leaf, attn_out]


def varlen_attention_backward(grad_out: torch.Tensor, saved: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the gradient of the states, from the gradient of the output (tokens, query heads, size)."""
    leaf, attn_out = saved
    return torch.autograd.grad(attn_out, leaf, grad_out)[0]


class _PrependPrefix(torch.autograd.Function):
    """Copy of the prefix in front of every sequence of keys and values (tokens, 2 * key heads, size).

    The gradient of plain indexing would add up the copies in bf16 and in any order; here it is one sum in fp32.
    """

    @staticmethod
    def forward(ctx: Any, key_values: torch.Tensor, layout: VarlenLayout) -> torch.Tensor:
        """Return the keys and values of all key slots."""
        assert layout.key_tokens is not None
        ctx.layout = layout
        return key_values.index_select(0, layout.key_tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of the packed keys and values."""
        layout, gradient = ctx.layout, gradients[0]
        result = gradient.index_select(0, layout.token_key_slots)
        # Add the gradients of all copies to the prefix.
        copied = gradient.index_select(0, layout.prefix_copy_slots.flatten()).view(
            *layout.prefix_copy_slots.shape, *gradient.shape[1:]
        )
        result[: layout.prefix_copy_slots.shape[1]] += copied.sum(0, dtype=torch.float32).to(gradient.dtype)
        return result, None
