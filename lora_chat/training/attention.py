"""Attention by segments on the CPU: each dialogue of a flat micro-batch attends only to itself.

The stock path builds one mask over the whole row and computes every product that it then masks away.
"""

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

NAME = "lora_chat_segments"


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
    """Causal attention within segments, softmax in fp32.

    query (1, heads, tokens, head size); key, value (1, key heads, tokens, head size); segment borders come
    as `cu_seq_lens_q` (segments + 1), as TRL's padding-free collator gives them. What this does not cover
    (dropout, sliding windows, soft caps, several rows, no borders) goes to the stock sdpa function.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    borders = kwargs.get("cu_seq_lens_q")
    special = dropout or any(kwargs.get(k) is not None for k in ("sliding_window", "softcap", "s_aux", "position_bias"))
    if borders is None or special or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        stock: Any = sdpa_attention_forward
        result = stock(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return cast("tuple[torch.Tensor, torch.Tensor | None]", result)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads, groups = query.shape[1], key.shape[1]
    edges = borders.tolist()
    outputs = []
    for start, end in pairwise(edges):
        length = end - start
        # Query heads that share a key head stand below each other: one product serves them all.
        q = query[0, :, start:end].reshape(groups, heads // groups * length, -1)
        scores = torch.baddbmm(
            _causal(length, heads // groups, q.dtype), q, key[0, :, start:end].transpose(1, 2), alpha=scale
        )
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        outputs.append((weights @ value[0, :, start:end]).view(heads, length, -1))
    # transformers wants (batch, tokens, heads, head size)
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0).contiguous(), None


@lru_cache(maxsize=256)
def _causal(length: int, copies: int, dtype: "torch.dtype") -> "torch.Tensor":
    """(copies * length, length): 0 where a token may look, -inf where the future is."""
    import torch

    mask = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
    return mask.repeat(copies, 1)
