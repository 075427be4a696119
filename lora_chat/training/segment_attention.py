"""The products of attention by segments, and their gradients.

Segments lie side by side in padded blocks: a few batched products instead of many small ones, and no
gradient of a slice that is as large as the whole. Long ones go in tiles of queries, for what a query cannot see
need not be computed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from lora_chat.training.segments import Block, Layout, causal_mask, cut_in_tiles

_HELD_LENGTH = 512
"""Attention weights of longer segments are computed again for the gradient instead of held."""


@dataclass(frozen=True)
class Heads:
    """Shape and scale of a layer's attention; states are (tokens, query + 2 * key heads, size)."""

    query: int
    key: int
    size: int
    scale: float
    window: int | None

    @property
    def copies(self) -> int:
        """Query heads that share a key head."""
        return self.query // self.key

    def sees_all(self, length: int) -> bool:
        """Whether no window hides any of `length` tokens."""
        return self.window is None or self.window >= length


def attend(states: torch.Tensor, heads: Heads, layout: Layout) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Query, key and value states -> (tokens, query heads, size), and what `attend_gradient` needs."""
    output = states.new_empty(states.shape[0], heads.query, heads.size)
    kept: list[torch.Tensor] = []
    for block in layout.blocks:
        q, k, v = _split(_take(states, block), block, heads)
        kept += [q, k, v]
        if not _holds(block) and heads.sees_all(block.length):
            _put(output, _tokens_first(_flash(q, k, v, heads), block, heads.copies), block)
            continue
        mixed = torch.empty_like(q)
        for tile in cut_in_tiles(block.length):
            rows = slice(tile[0] * heads.copies, tile[1] * heads.copies)
            weights = _weights(q[:, rows], k[:, : tile[1]], tile, heads)
            mixed[:, rows] = weights @ v[:, : tile[1]]
            if _holds(block):
                kept.append(weights)
        _put(output, _tokens_first(mixed, block, heads.copies), block)
    return output, kept


def attend_gradient(above: torch.Tensor, kept: list[torch.Tensor], heads: Heads, layout: Layout) -> torch.Tensor:
    """Gradient of the states, from that of the output, above (tokens, query heads, size)."""
    result = above.new_empty(above.shape[0], heads.query + 2 * heads.key, heads.size)
    copied: list[torch.Tensor] = []
    rest = list(kept)
    for block in layout.blocks:
        held = len(cut_in_tiles(block.length)) if _holds(block) else 0
        (q, k, v), weights, rest = rest[:3], rest[3 : 3 + held], rest[3 + held :]
        gradients = _block_gradient(_grouped(_spread(above, block), block, heads.copies), q, k, v, weights, heads)
        flat = torch.cat([_tokens_first(g, block, g.shape[1] // block.length) for g in gradients], dim=1)
        _put(result, flat, block)
        if layout.prefix:
            copied.append(_prefix_sum(flat, block, layout.prefix))
    for gradient in copied:
        result[: layout.prefix, heads.query :] += gradient[:, heads.query :]
    return result


def _holds(block: Block) -> bool:
    """Whether attention weights are kept for the gradient, or made again."""
    return block.length <= _HELD_LENGTH


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads) -> torch.Tensor:
    """PyTorch's kernel holds no weights and is fast forwards, but not backwards (benchmarks/LOG.md)."""
    split = q.view(q.shape[0], -1, heads.copies, q.shape[2]).transpose(1, 2)
    keys, values = (states.unsqueeze(1).expand(split.shape) for states in (k, v))
    mixed = scaled_dot_product_attention(split, keys, values, is_causal=True, scale=heads.scale)
    return mixed.transpose(1, 2).flatten(1, 2)


def _block_gradient(
    above: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    held: list[torch.Tensor],
    heads: Heads,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tiles = cut_in_tiles(k.shape[1])
    to_q = torch.empty_like(q)
    sums = torch.zeros(2, *k.shape, dtype=torch.float32, device=k.device) if len(tiles) > 1 else None
    for number, tile in enumerate(tiles):
        rows, end = slice(tile[0] * heads.copies, tile[1] * heads.copies), tile[1]
        weights = held[number] if held else _weights(q[:, rows], k[:, :end], tile, heads)
        to_weights = above[:, rows] @ v[:, :end].transpose(1, 2)
        scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_q[:, rows] = (scores @ k[:, :end]).mul_(heads.scale)
        to_k = (scores.transpose(1, 2) @ q[:, rows]).mul_(heads.scale)
        to_v = weights.transpose(1, 2) @ above[:, rows]
        if sums is None:
            return to_q, to_k, to_v
        sums[0, :, :end] += to_k
        sums[1, :, :end] += to_v
    assert sums is not None
    return to_q, sums[0].to(k.dtype), sums[1].to(k.dtype)


def _weights(q: torch.Tensor, k: torch.Tensor, tile: tuple[int, int], heads: Heads) -> torch.Tensor:
    """Softmax in fp32 inside the operation, rounded once."""
    scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=heads.scale)
    # Without a window, only keys of the tile itself can lie in the future.
    masked = tile[0] if heads.sees_all(tile[1]) else 0
    scores[:, :, masked:] += causal_mask(tile, heads.copies, q.dtype, heads.window, q.device)[:, masked:]
    return scores.softmax(-1)


def _take(flat: torch.Tensor, block: Block) -> torch.Tensor:
    """(tokens, ...) -> (segments * length, ...)."""
    return flat[slice(*block.run)] if block.run else flat.index_select(0, block.padded)


def _spread(flat: torch.Tensor, block: Block) -> torch.Tensor:
    """As `_take`, with zeros for padding and for copies of the prefix: no gradient comes from there."""
    if block.run:
        return flat[slice(*block.run)]
    padded = flat.new_zeros(block.padded.numel(), *flat.shape[1:])
    return padded.index_copy_(0, block.places, flat.index_select(0, block.tokens))


def _put(flat: torch.Tensor, padded: torch.Tensor, block: Block) -> None:
    if block.run:
        flat[slice(*block.run)] = padded
    else:
        flat.index_copy_(0, block.tokens, padded.index_select(0, block.places))


def _split(padded: torch.Tensor, block: Block, heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = torch.split(padded, [heads.query, heads.key, heads.key], dim=1)
    return _grouped(q, block, heads.copies), _grouped(k, block, 1), _grouped(v, block, 1)


def _grouped(padded: torch.Tensor, block: Block, copies: int) -> torch.Tensor:
    """(segments * length, heads, size) -> (segments * key heads, length * copies, size).

    Query heads that share a key head lie next to each other: one product serves them all.
    """
    heads, size = padded.shape[1:]
    split = padded.view(-1, block.length, heads // copies, copies, size)
    return split.transpose(1, 2).reshape(-1, block.length * copies, size)


def _tokens_first(states: torch.Tensor, block: Block, copies: int) -> torch.Tensor:
    """The way back from `_grouped`."""
    segments = block.padded.numel() // block.length
    split = states.view(segments, -1, block.length, copies, states.shape[-1])
    return split.transpose(1, 2).reshape(segments * block.length, -1, states.shape[-1])


def _prefix_sum(padded: torch.Tensor, block: Block, prefix: int) -> torch.Tensor:
    """Gradient of the prefix from the segments that only see it."""
    copies = padded.view(-1, block.length, *padded.shape[1:])[block.first_copy :, :prefix]
    return copies.sum(0, dtype=torch.float32).to(padded.dtype)


class SegmentAttention(torch.autograd.Function):
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
