"""Attention over packed batches on a CPU, and its gradient.

Sequences are laid out in padded blocks, because a few batched products are faster than many small ones and because
the gradient of a slice would be as large as the whole. Long sequences are split into tiles of queries, so that most
masked scores are not computed.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from lora_chat.training.fast_path.attention.blocks import causal_mask, split_into_tiles
from lora_chat.training.fast_path.attention.gather_index import BlockedLayout, GatheredBlock

_MAX_SAVED_LENGTH = 512
"""Longest block in tokens whose attention weights are saved; longer ones are computed again for the gradient."""


@dataclass(frozen=True)
class HeadConfig:
    """Shape and scale of a layer's attention; states are (tokens, query + 2 * key heads, size)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    """Length of the sliding window in tokens; None for full attention."""

    @property
    def heads_per_kv_head(self) -> int:
        """Return the number of query heads that share a key head."""
        return self.num_heads // self.num_kv_heads

    def window_covers(self, length: int) -> bool:
        """Return whether the window hides none of `length` tokens."""
        return self.window is None or self.window >= length


def blocked_attention_forward(
    states: torch.Tensor, heads: HeadConfig, layout: BlockedLayout
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return attention (tokens, query heads, size) and the tensors that its gradient needs."""
    # Gather the rows of all blocks together, one row per head of a token.
    gathered = states.reshape(-1, heads.head_dim).index_select(0, layout.gather_rows)
    attn_out = gathered.new_empty(layout.grad_out_rows.numel(), heads.head_dim)
    saved = [gathered]
    for block in layout.blocks:
        q, k, v = _split_qkv(gathered, block, heads)
        # Each block writes to its own part of the output.
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
    # Put the rows back into the order of the packed batch, which drops padding and copies of the prefix.
    return attn_out.index_select(0, layout.output_rows).view(-1, heads.num_heads, heads.head_dim), saved


def blocked_attention_backward(
    grad_out: torch.Tensor, saved: list[torch.Tensor], heads: HeadConfig, layout: BlockedLayout
) -> torch.Tensor:
    """Return the gradient of the states, from the gradient of the output (tokens, query heads, size)."""
    gathered, *saved_weights = saved
    # Gather the gradient like the output; padding and copies of the prefix get none.
    grad_attn_out = (
        grad_out.reshape(-1, heads.head_dim)
        .index_select(0, layout.grad_out_rows)
        .index_fill_(0, layout.zero_grad_rows, 0.0)
    )
    grad_gathered = torch.empty_like(gathered)
    for block in layout.blocks:
        # Take this block's saved weights, one tensor for each tile.
        count = len(split_into_tiles(block.length)) if _saves_weights(block) else 0
        weights, saved_weights = saved_weights[:count], saved_weights[count:]
        parts = _split_qkv(gathered, block, heads)
        grad_block = grad_attn_out[
            block.first_out_row : block.first_out_row + parts[0].shape[0] * parts[0].shape[1]
        ].view_as(parts[0])
        _block_backward(grad_block, parts, weights, heads, _split_qkv(grad_gathered, block, heads))
    # Put the rows back into the order of the packed batch.
    grad_states = grad_gathered.index_select(0, layout.ungather_rows).view(grad_out.shape[0], -1, heads.head_dim)
    if layout.prefix_copy_rows.numel():
        # Keys and values of the shared prefix also get the gradients of their copies, summed in fp32.
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
    """Write the gradients of a block's query, key and value into `grads`."""
    (q, k, v), (grad_q, grad_k, grad_v) = parts, grads
    tiles = split_into_tiles(k.shape[1])
    # Several tiles add to the gradient of the same key, so the sum is kept in fp32.
    grad_sums = torch.zeros(2, *k.shape, dtype=torch.float32, device=k.device) if len(tiles) > 1 else None
    for number, tile in enumerate(tiles):
        queries, end = slice(tile[0] * heads.heads_per_kv_head, tile[1] * heads.heads_per_kv_head), tile[1]
        weights = saved_weights[number] if saved_weights else _attention_weights(q[:, queries], k[:, :end], tile, heads)
        # Through the product with the values, then through the softmax.
        grad_weights = grad_out[:, queries] @ v[:, :end].transpose(1, 2)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        # Through the scaled product of queries and keys.
        grad_q[:, queries] = (grad_scores @ k[:, :end]).mul_(heads.scale)
        tile_grad_k = (grad_scores.transpose(1, 2) @ q[:, queries]).mul_(heads.scale)
        tile_grad_v = weights.transpose(1, 2) @ grad_out[:, queries]
        if grad_sums is None:  # the only tile covers all keys
            grad_k.copy_(tile_grad_k)
            grad_v.copy_(tile_grad_v)
            return
        grad_sums[0, :, :end] += tile_grad_k
        grad_sums[1, :, :end] += tile_grad_v
    assert grad_sums is not None
    grad_k.copy_(grad_sums[0])
    grad_v.copy_(grad_sums[1])


def _split_qkv(gathered: torch.Tensor, block: GatheredBlock, heads: HeadConfig) -> _QueryKeyValue:
    """Return views of a block's query (groups, length * copies, size), key and value (groups, length, size).

    The query heads of a key head are next to each other, so that one product computes all of them.
    """
    count = block.groups * block.length
    sizes = [count * heads.heads_per_kv_head, count, count]
    parts = torch.split(gathered[block.first_row : block.first_row + sum(sizes)], sizes)
    q, k, v = (part.view(block.groups, -1, heads.head_dim) for part in parts)
    return q, k, v


def _attention_weights(q: torch.Tensor, k: torch.Tensor, tile: tuple[int, int], heads: HeadConfig) -> torch.Tensor:
    """Return the attention weights of a tile; the softmax computes in fp32 and rounds once."""
    scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=heads.scale)
    # Without a window, only keys of the tile itself can be later than a query.
    mask_start = tile[0] if heads.window_covers(tile[1]) else 0
    scores[:, :, mask_start:] += causal_mask(tile, heads.heads_per_kv_head, q.dtype, heads.window, q.device)[
        :, mask_start:
    ]
    return scores.softmax(-1)


def _saves_weights(block: GatheredBlock) -> bool:
    """Return whether the block's attention weights are saved for the gradient."""
    return block.length <= _MAX_SAVED_LENGTH


def _flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: HeadConfig) -> torch.Tensor:
    """Return attention by PyTorch's kernel, which saves no weights and is only fast forward (benchmarks/LOG.md)."""
    split = q.view(q.shape[0], -1, heads.heads_per_kv_head, heads.head_dim).transpose(1, 2)
    keys, values = (states.unsqueeze(1).expand(-1, heads.heads_per_kv_head, -1, -1) for states in (k, v))
    attn_out = scaled_dot_product_attention(split, keys, values, is_causal=True, scale=heads.scale)
    return attn_out.transpose(1, 2).flatten(1, 2)
