"""Attention by segments for layers that are not fused: each dialogue of a flat micro-batch attends only to itself.

The stock path builds one mask over the whole row and computes every product that it then masks away; its
flash kernel is slower on a CPU than plain products.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import torch

from lora_chat.training.fast_path.attention.backends import Layout, attend, attend_gradient, find_layout
from lora_chat.training.fast_path.attention.cpu import Heads
from lora_chat.training.fast_path.attention.gpu import covers

NAME = "lora_chat_segments"


class PrefixNotSharedError(Exception):
    """A layer's attention is not covered here, and the stock one knows no shared prefix."""


def register_segment_attention() -> str:
    """Make the implementation known to transformers; returns its name for `set_attn_implementation`.

    It has no mask function: transformers then builds none, which costs a square of the tokens and, on a GPU, a wait.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, segment_attention)
    return NAME


def segment_attention(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> "tuple[torch.Tensor, torch.Tensor | None]":
    """Causal attention within segments, and within the layer's sliding window if it has one.

    query (1, heads, tokens, head size); key, value (1, key heads, tokens, head size); segment borders come
    as `segment_edges` (segments + 1 integers), and the length of a shared prefix as `shared_prefix`. What this does
    not cover (dropout, soft caps, several rows, no borders) goes to the stock sdpa function,
    which knows no shared prefix: with one, it is refused.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    edges, prefix = kwargs.pop("segment_edges", None), kwargs.pop("shared_prefix", 0)
    special = dropout or any(kwargs.get(k) is not None for k in ("softcap", "s_aux", "position_bias"))
    alike = query.shape[0] == 1 and query.shape[2:] == key.shape[2:] == value.shape[2:]
    known = query.device.type == "cpu" or covers(query)
    if edges is None or special or not alike or not known:
        if prefix:
            raise PrefixNotSharedError
        if edges is not None and attention_mask is None:
            attention_mask = _block_mask(edges, kwargs.get("sliding_window"), query.device)
        stock: Any = sdpa_attention_forward
        result = stock(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return cast("tuple[torch.Tensor, torch.Tensor | None]", result)
    heads = Heads(
        query=query.shape[1],
        key=key.shape[1],
        size=query.shape[-1],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window"),
    )
    layout = find_layout(edges, int(prefix), heads, query.device)
    states = torch.cat([query, key, value], dim=1).squeeze(0).transpose(0, 1)
    output: torch.Tensor = _Attention.apply(states, heads, layout)  # type: ignore[no-untyped-call]
    return output.unsqueeze(0), None  # transformers wants (batch, tokens, heads, head size)


class _Attention(torch.autograd.Function):
    """`attend` for autograd: states (tokens, query + 2 * key heads, size) -> (tokens, query heads, size)."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, heads: Heads, layout: Layout) -> torch.Tensor:
        output, kept = attend(states, heads, layout)
        ctx.save_for_backward(*kept)
        ctx.layout = heads, layout
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return attend_gradient(gradients[0], list(ctx.saved_tensors), *ctx.layout), None, None


@lru_cache(maxsize=4)
def _block_mask(edges: tuple[int, ...], window: int | None, device: "torch.device") -> "torch.Tensor":
    """True where a token may look: (1, 1, tokens, tokens)."""
    segment = torch.cat([torch.full((end - start,), i) for i, (start, end) in enumerate(pairwise(edges))])
    back = torch.arange(edges[-1])[:, None] - torch.arange(edges[-1])
    seen = (segment[:, None] == segment) & (back >= 0)
    if window is not None:
        seen &= back < window
    return seen.to(device)[None, None]
