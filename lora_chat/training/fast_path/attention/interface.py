"""Attention function for layers that are not fused, in which each dialogue of a packed batch attends only to itself.

The stock path builds one mask over the whole row and computes every product that it then masks. Its flash kernel is
slower on a CPU than plain products.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import torch

from lora_chat.training.fast_path.attention.backends import (
    AttentionLayout,
    attention_backward,
    attention_forward,
    build_attention_layout,
)
from lora_chat.training.fast_path.attention.cpu import HeadConfig
from lora_chat.training.fast_path.attention.gpu import supports_varlen

ATTENTION_NAME = "lora_chat_segments"


class SharedPrefixUnsupportedError(Exception):
    """A layer whose attention only the stock function computes, which does not support a shared prefix."""


def register_packed_attention() -> str:
    """Register the function with transformers. Return its name for `set_attn_implementation`.

    It has no mask function, so transformers builds no mask. A mask would need memory for the square of the tokens and,
    on a GPU, a synchronization.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    return ATTENTION_NAME


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute causal attention within sequences, and within the layer's sliding window if it has one.

    query (1, heads, tokens, head size); key, value (1, key heads, tokens, head size). `packed_cu_seqlens` are the
    borders of the sequences (sequences + 1 integers), and `shared_prefix` is the length of a shared prefix. The stock
    sdpa function computes everything else (dropout, soft caps, several rows, no borders), but refuses a shared prefix.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    cu_seqlens, prefix = kwargs.pop("packed_cu_seqlens", None), kwargs.pop("shared_prefix", 0)
    unsupported = dropout or any(kwargs.get(k) is not None for k in ("softcap", "s_aux", "position_bias"))
    shapes_match = query.shape[0] == 1 and query.shape[2:] == key.shape[2:] == value.shape[2:]
    kernel_supported = query.device.type == "cpu" or supports_varlen(query)
    if cu_seqlens is None or unsupported or not shapes_match or not kernel_supported:
        if prefix:
            raise SharedPrefixUnsupportedError
        if cu_seqlens is not None and attention_mask is None:
            attention_mask = _block_diagonal_mask(cu_seqlens, kwargs.get("sliding_window"), query.device)
        stock: Any = sdpa_attention_forward
        result = stock(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return cast("tuple[torch.Tensor, torch.Tensor | None]", result)
    heads = HeadConfig(
        num_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        head_dim=query.shape[-1],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window"),
    )
    layout = build_attention_layout(cu_seqlens, int(prefix), heads, query.device)
    # The backends take query, key and value heads of a token side by side: (tokens, query + 2 * key heads, size).
    states = torch.cat([query, key, value], dim=1).squeeze(0).transpose(0, 1)
    output: torch.Tensor = _AttentionFunction.apply(states, heads, layout)  # type: ignore[no-untyped-call]
    return output.unsqueeze(0), None  # transformers expects (batch, tokens, heads, head size)


class _AttentionFunction(torch.autograd.Function):
    """Attention for autograd: states (tokens, query + 2 * key heads, size) -> (tokens, query heads, size)."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, heads: HeadConfig, layout: AttentionLayout) -> torch.Tensor:
        """Return the output of attention."""
        output, saved = attention_forward(states, heads, layout)
        ctx.save_for_backward(*saved)
        ctx.layout = heads, layout
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the states."""
        return attention_backward(gradients[0], list(ctx.saved_tensors), *ctx.layout), None, None


@lru_cache(maxsize=4)
def _block_diagonal_mask(cu_seqlens: tuple[int, ...], window: int | None, device: torch.device) -> torch.Tensor:
    """Return a mask (1, 1, tokens, tokens) that is True where a token may attend."""
    sequence = torch.cat([torch.full((end - start,), i) for i, (start, end) in enumerate(pairwise(cu_seqlens))])
    distance = torch.arange(cu_seqlens[-1])[:, None] - torch.arange(cu_seqlens[-1])
    visible = (sequence[:, None] == sequence) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    return visible.to(device)[None, None]
