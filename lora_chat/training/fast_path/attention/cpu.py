"""The products of attention by segments, and their gradients.

Segments lie side by side in padded blocks: a few batched products instead of many small ones, and no
gradient of a slice that is as large as the whole. Long ones go in tiles of queries, for what a query cannot see
need not be computed.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from lora_chat.training.fast_path.attention.blocks import causal_mask, cut_in_tiles
from lora_chat.training.fast_path.attention.gather_index import HeadRows, Piece

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


def attend_blocks(states: torch.Tensor, heads: Heads, rows: HeadRows) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Query, key and value states -> (tokens, query heads, size), and what `blocks_gradient` needs."""
    gathered = states.reshape(-1, heads.size).index_select(0, rows.gather)
    mixed = gathered.new_empty(rows.above.numel(), heads.size)
    kept = [gathered]
    for piece in rows.pieces:
        q, k, v = _parts(gathered, piece, heads)
        result = mixed[piece.mixed : piece.mixed + q.shape[0] * q.shape[1]].view_as(q)
        if not _holds(piece) and heads.sees_all(piece.length):
            result.copy_(_flash(q, k, v, heads))
            continue
        for tile in cut_in_tiles(piece.length):
            queries = slice(tile[0] * heads.copies, tile[1] * heads.copies)
            weights = _weights(q[:, queries], k[:, : tile[1]], tile, heads)
            result[:, queries] = weights @ v[:, : tile[1]]
            if _holds(piece):
                kept.append(weights)
    return mixed.index_select(0, rows.output).view(-1, heads.query, heads.size), kept


def blocks_gradient(above: torch.Tensor, kept: list[torch.Tensor], heads: Heads, rows: HeadRows) -> torch.Tensor:
    """Gradient of the states, from that of the output, above (tokens, query heads, size)."""
    gathered, *held = kept
    mixed = above.reshape(-1, heads.size).index_select(0, rows.above).index_fill_(0, rows.silent, 0.0)
    result = torch.empty_like(gathered)
    for piece in rows.pieces:
        count = len(cut_in_tiles(piece.length)) if _holds(piece) else 0
        weights, held = held[:count], held[count:]
        parts = _parts(gathered, piece, heads)
        up = mixed[piece.mixed : piece.mixed + parts[0].shape[0] * parts[0].shape[1]].view_as(parts[0])
        _piece_gradient(up, parts, weights, heads, _parts(result, piece, heads))
    to_states = result.index_select(0, rows.back).view(above.shape[0], -1, heads.size)
    if rows.shared.numel():
        copied = result.index_select(0, rows.shared.flatten()).view(*rows.shared.shape, heads.size)
        to_states[: rows.shared.shape[1], heads.query :] += copied.sum(0, dtype=torch.float32).to(copied.dtype)
    return to_states


_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _piece_gradient(up: torch.Tensor, parts: _Parts, held: list[torch.Tensor], heads: Heads, result: _Parts) -> None:
    """Write the gradients of query, key and value into `result`."""
    (q, k, v), (to_q, to_k, to_v) = parts, result
    tiles = cut_in_tiles(k.shape[1])
    sums = torch.zeros(2, *k.shape, dtype=torch.float32, device=k.device) if len(tiles) > 1 else None
    for number, tile in enumerate(tiles):
        queries, end = slice(tile[0] * heads.copies, tile[1] * heads.copies), tile[1]
        weights = held[number] if held else _weights(q[:, queries], k[:, :end], tile, heads)
        to_weights = up[:, queries] @ v[:, :end].transpose(1, 2)
        scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_q[:, queries] = (scores @ k[:, :end]).mul_(heads.scale)
        keys = (scores.transpose(1, 2) @ q[:, queries]).mul_(heads.scale)
        values = weights.transpose(1, 2) @ up[:, queries]
        if sums is None:
            to_k.copy_(keys)
            to_v.copy_(values)
            return
        sums[0, :, :end] += keys
        sums[1, :, :end] += values
    assert sums is not None
    to_k.copy_(sums[0])
    to_v.copy_(sums[1])


def _parts(gathered: torch.Tensor, piece: Piece, heads: Heads) -> _Parts:
    """Query (groups, length * copies, size), key and value (groups, length, size); copies lie next to each other:
    one product serves all query heads of a key head.
    """
    count = piece.groups * piece.length
    sizes = [count * heads.copies, count, count]
    parts = torch.split(gathered[piece.begin : piece.begin + sum(sizes)], sizes)
    q, k, v = (part.view(piece.groups, -1, heads.size) for part in parts)
    return q, k, v


def _weights(q: torch.Tensor, k: torch.Tensor, tile: tuple[int, int], heads: Heads) -> torch.Tensor:
    """Softmax in fp32 inside the operation, rounded once."""
    scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=heads.scale)
    # Without a window, only keys of the tile itself can lie in the future.
    masked = tile[0] if heads.sees_all(tile[1]) else 0
    scores[:, :, masked:] += causal_mask(tile, heads.copies, q.dtype, heads.window, q.device)[:, masked:]
    return scores.softmax(-1)


def _holds(piece: Piece) -> bool:
    """Whether attention weights are kept for the gradient, or made again."""
    return piece.length <= _HELD_LENGTH


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads) -> torch.Tensor:
    """PyTorch's kernel holds no weights and is fast forwards, but not backwards (benchmarks/LOG.md)."""
    split = q.view(q.shape[0], -1, heads.copies, heads.size).transpose(1, 2)
    keys, values = (states.unsqueeze(1).expand(-1, heads.copies, -1, -1) for states in (k, v))
    mixed = scaled_dot_product_attention(split, keys, values, is_causal=True, scale=heads.scale)
    return mixed.transpose(1, 2).flatten(1, 2)
