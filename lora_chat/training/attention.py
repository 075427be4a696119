"""Attention by segments on the CPU: each dialogue of a flat micro-batch attends only to itself.

The stock path builds one mask over the whole row and computes every product that it then masks away; its
flash kernel is slower on a CPU than plain products.
"""

from typing import Any, cast

import torch

from lora_chat.training.head_rows import find_rows
from lora_chat.training.segment_attention import Heads, SegmentAttention

NAME = "lora_chat_segments"


class PrefixNotSharedError(Exception):
    """A layer's attention is not covered here, and the stock one knows no shared prefix."""


def register_segment_attention() -> str:
    """Make the implementation known to transformers; returns its name for `set_attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, segment_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
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
    as `cu_seq_lens_q` (segments + 1), and the length of a shared prefix as `shared_prefix`. What this does
    not cover (dropout, soft caps, several rows, no borders) goes to the stock sdpa function,
    which knows no shared prefix: with one, it is refused.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    borders, prefix = kwargs.get("cu_seq_lens_q"), kwargs.pop("shared_prefix", 0)
    special = dropout or any(kwargs.get(k) is not None for k in ("softcap", "s_aux", "position_bias"))
    if borders is None or special or query.shape[0] != 1 or not query.shape[2:] == key.shape[2:] == value.shape[2:]:
        if prefix:
            raise PrefixNotSharedError
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
    rows = find_rows(tuple(borders.tolist()), int(prefix), heads.query, heads.key)
    states = torch.cat([query, key, value], dim=1).squeeze(0).transpose(0, 1)
    output: torch.Tensor = SegmentAttention.apply(states, heads, rows)  # type: ignore[no-untyped-call]
    return output.unsqueeze(0), None  # transformers wants (batch, tokens, heads, head size)
