"""The products of attention by segments, and their gradients.

Segments lie side by side in padded blocks: a few batched products instead of many small ones, and no
gradient of a slice that is as large as the whole. Long ones go in tiles of queries, for what a query cannot see
need not be computed.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from lora_chat.training.fast_path.attention.blocks import causal_mask, split_into_tiles
from lora_chat.training.fast_path.attention.gather_index import BlockedLayout, GatheredBlock

_MAX_SAVED_LENGTH = 512
"""Attention weights of longer segments are computed again for the gradient instead of held."""


@dataclass(frozen=True)
class HeadConfig:
    """Shape and scale of a layer's attention; states are (tokens, query + 2 * key heads, size)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None

    @property
    def heads_per_kv_head(self) -> int:
        """Query heads that share a key head."""
        return self.num_heads // self.num_kv_heads

    def window_covers(self, length: int) -> bool:
        """Whether no window hides any of `length` tokens."""
        return self.window is None or self.window >= length


def blocked_attention_forward(
    states: torch.Tensor, heads: HeadConfig, layout: BlockedLayout
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Query, key and value states -> (tokens, query heads, size), and what `blocked_attention_backward` needs."""
    gathered = states.reshape(-1, heads.head_dim).index_select(0, layout.gather_rows)
    attn_out = gathered.new_empty(layout.above.numel(), heads.head_dim)
    saved = [gathered]
    for block in layout.blocks:
        q, k, v = _split_qkv(gathered, block, heads)
        result = attn_out[block.first_out_row : block.first_out_row + q.shape[0] * q.shape[1]].view_as(q)
        if not _saves_weights(block) and heads.window_covers(block.length):
            result.copy_(_flash_attention(q, k, v, heads))
            continue
        for tile in split_into_tiles(block.length):
            queries = slice(tile[0] * heads.heads_per_kv_head, tile[1] * heads.heads_per_kv_head)
            weights = _attention_weights(q[:, queries], k[:, : tile[1]], tile, heads)
            result[:, queries] = weights @ v[:, : tile[1]]
            if _saves_weights(block):
                saved.append(weights)
    return attn_out.index_select(0, layout.output_rows).view(-1, heads.num_heads, heads.head_dim), saved


def blocked_attention_backward(
    grad_out: torch.Tensor, saved: list[torch.Tensor], heads: HeadConfig, layout: BlockedLayout
) -> torch.Tensor:
    """Gradient of the states, from that of the output, above (tokens, query heads, size)."""
    gathered, *saved_weights = saved
    grad_attn_out = (
        grad_out.reshape(-1, heads.head_dim).index_select(0, layout.above).index_fill_(0, layout.zero_grad_rows, 0.0)
    )
    grad_gathered = torch.empty_like(gathered)
    for block in layout.blocks:
        count = len(split_into_tiles(block.length)) if _saves_weights(block) else 0
        weights, saved_weights = saved_weights[:count], saved_weights[count:]
        parts = _split_qkv(gathered, block, heads)
        grad_block = grad_attn_out[
            block.first_out_row : block.first_out_row + parts[0].shape[0] * parts[0].shape[1]
        ].view_as(parts[0])
        _block_backward(grad_block, parts, weights, heads, _split_qkv(grad_gathered, block, heads))
    grad_states = grad_gathered.index_select(0, layout.ungather_rows).view(grad_out.shape[0], -1, heads.head_dim)
    if layout.prefix_copy_rows.numel():
        copied = grad_gathered.index_select(0, layout.prefix_copy_rows.flatten()).view(
            *layout.prefix_copy_rows.shape, heads.head_dim
        )
        grad_states[: layout.prefix_copy_rows.shape[1], heads.num_heads :] += copied.sum(0, dtype=torch.float32).to(
            copied.dtype
        )
    return grad_states


_QueryKeyValue = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _block_backward(
    grad_out: torch.Tensor,
    parts: _QueryKeyValue,
    saved_weights: list[torch.Tensor],
    heads: HeadConfig,
    grads: _QueryKeyValue,
) -> None:
    """Write the gradients of query, key and value into `grad_gathered`."""
    (q, k, v), (grad_q, grad_k, grad_v) = parts, grads
    tiles = split_into_tiles(k.shape[1])
    grad_sums = torch.zeros(2, *k.shape, dtype=torch.float32, device=k.device) if len(tiles) > 1 else None
    for number, tile in enumerate(tiles):
        queries, end = slice(tile[0] * heads.heads_per_kv_head, tile[1] * heads.heads_per_kv_head), tile[1]
        weights = saved_weights[number] if saved_weights else _attention_weights(q[:, queries], k[:, :end], tile, heads)
        grad_weights = grad_out[:, queries] @ v[:, :end].transpose(1, 2)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q[:, queries] = (grad_scores @ k[:, :end]).mul_(heads.scale)
        tile_grad_k = (grad_scores.transpose(1, 2) @ q[:, queries]).mul_(heads.scale)
        tile_grad_v = weights.transpose(1, 2) @ grad_out[:, queries]
        if grad_sums is None:
            grad_k.copy_(tile_grad_k)
            grad_v.copy_(tile_grad_v)
            return
        grad_sums[0, :, :end] += tile_grad_k
        grad_sums[1, :, :end] += tile_grad_v
    assert grad_sums is not None
    grad_k.copy_(grad_sums[0])
    grad_v.copy_(grad_sums[1])


def _split_qkv(gathered: torch.Tensor, block: GatheredBlock, heads: HeadConfig) -> _QueryKeyValue:
    """Query (groups, length * copies, size), key and value (groups, length, size); copies lie next to each other:
    one product serves all query heads of a key head.
    """
    count = block.groups * block.length
    sizes = [count * heads.heads_per_kv_head, count, count]
    parts = torch.split(gathered[block.first_row : block.first_row + sum(sizes)], sizes)
    q, k, v = (part.view(block.groups, -1, heads.head_dim) for part in parts)
    return q, k, v


def _attention_weights(q: torch.Tensor, k: torch.Tensor, tile: tuple[int, int], heads: HeadConfig) -> torch.Tensor:
    """Softmax in fp32 inside the operation, rounded once."""
    scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=heads.scale)
    # Without a window, only keys of the tile itself can lie in the future.
    mask_start = tile[0] if heads.window_covers(tile[1]) else 0
    scores[:, :, mask_start:] += causal_mask(tile, heads.heads_per_kv_head, q.dtype, heads.window, q.device)[
        :, mask_start:
    ]
    return scores.softmax(-1)


def _saves_weights(block: GatheredBlock) -> bool:
    """Whether attention weights are kept for the gradient, or made again."""
    return block.length <= _MAX_SAVED_LENGTH


def _flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: HeadConfig) -> torch.Tensor:
    """PyTorch's kernel holds no weights and is fast forwards, but not backwards (benchmarks/LOG.md)."""
    split = q.view(q.shape[0], -1, heads.heads_per_kv_head, heads.head_dim).transpose(1, 2)
    keys, values = (states.unsqueeze(1).expand(-1, heads.heads_per_kv_head, -1, -1) for states in (k, v))
    attn_out = scaled_dot_product_attention(split, keys, values, is_causal=True, scale=heads.scale)
    return attn_out.transpose(1, 2).flatten(1, 2)
