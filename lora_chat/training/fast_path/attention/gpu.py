"""Attention by segments on a GPU: PyTorch's variable-length flash attention, which no wheel has to bring.

A shared prefix stands once among the queries, and before every segment among the keys: the kernel aligns the ends of
both, so that is causal attention behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from lora_chat.training.fast_path.attention.cpu import HeadConfig

_MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class VarlenLayout:
    """Borders of a flat micro-batch, on its device."""

    cu_seqlens_q: torch.Tensor
    """(segments + 1,), int32."""
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    key_tokens: torch.Tensor | None = None
    """(keys,): the flat token at every place of the keys; None: keys stand as queries do."""
    token_key_slots: torch.Tensor | None = None
    """(tokens,): the place of every flat token among the keys, not counting copies."""
    prefix_copy_slots: torch.Tensor | None = None
    """(segments - 1, prefix): the places of the prefix's copies."""


def supports_varlen(states: torch.Tensor) -> bool:
    """Whether the kernel takes states (..., size) of this type and size."""
    return states.dtype in (torch.bfloat16, torch.float16) and states.shape[-1] <= _MAX_HEAD_DIM


@lru_cache(maxsize=64)
def build_varlen_layout(cu_seqlens: tuple[int, ...], prefix: int, device: torch.device) -> VarlenLayout:
    """Flat borders (segments + 1) and the tokens that all segments begin with -> what the kernel wants to know."""

    def here(values: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    queries = [end - start for start, end in pairwise(cu_seqlens)]
    cu_seqlens_q = here(cu_seqlens, torch.int32)
    if not prefix:
        return VarlenLayout(cu_seqlens_q, cu_seqlens_q, max(queries), max(queries))
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
        here(cu_seqlens_k, torch.int32),
        max(queries),
        longest,
        here(keys),
        here(own),
        here(copies).view(-1, prefix),
    )


def varlen_attention(states: torch.Tensor, heads: HeadConfig, layout: VarlenLayout) -> torch.Tensor:
    """Query, key and value states (tokens, query + 2 * key heads, size) -> (tokens, query heads, size)."""
    from torch.nn.attention.varlen import varlen_attn

    queries, key_values = torch.split(states, [heads.num_heads, 2 * heads.num_kv_heads], dim=1)
    if layout.key_tokens is not None:
        key_values = _PrependPrefix.apply(key_values, layout)  # type: ignore[no-untyped-call]
    keys, values = key_values.chunk(2, dim=1)
    window_left = -1 if heads.window is None else heads.window - 1
    borders = layout.cu_seqlens_q, layout.cu_seqlens_k, layout.max_seqlen_q, layout.max_seqlen_k
    attn_out: torch.Tensor = varlen_attn(  # type: ignore[assignment]
        queries, keys, values, *borders, scale=heads.scale, window_size=(window_left, 0), enable_gqa=True
    )
    return attn_out


def varlen_attention_forward(
    states: torch.Tensor, heads: HeadConfig, layout: VarlenLayout
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`varlen_attention`, and what `varlen_attention_backward` needs: the kernel's own gradient, kept behind its
    result.
    """
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        attn_out = varlen_attention(leaf, heads, layout)
    return attn_out.detach(), [leaf, attn_out]


def varlen_attention_backward(grad_out: torch.Tensor, saved: Sequence[torch.Tensor]) -> torch.Tensor:
    """Gradient of the states, from that of the output (tokens, query heads, size)."""
    leaf, attn_out = saved
    return torch.autograd.grad(attn_out, leaf, grad_out)[0]


class _PrependPrefix(torch.autograd.Function):
    """Keys and values (tokens, 2 * key heads, size) -> the same with the prefix in front of every segment.

    Indexing would add up the copies' gradients in bf16 and in any order; here it is one sum in fp32.
    """

    @staticmethod
    def forward(ctx: Any, pairs: torch.Tensor, rows: VarlenLayout) -> torch.Tensor:
        assert rows.key_tokens is not None
        ctx.rows = rows
        return pairs.index_select(0, rows.key_tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, gradient = ctx.rows, gradients[0]
        result = gradient.index_select(0, rows.token_key_slots)
        copied = gradient.index_select(0, rows.prefix_copy_slots.flatten()).view(
            *rows.prefix_copy_slots.shape, *gradient.shape[1:]
        )
        result[: rows.prefix_copy_slots.shape[1]] += copied.sum(0, dtype=torch.float32).to(gradient.dtype)
        return result, None
