"""The products of attention by segments, and their gradients.

Segments lie side by side in padded blocks: a few batched products instead of many small ones, and no
gradient of a slice that is as large as the whole.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lora_chat.training.segments import Block, causal_mask

_HELD_LENGTH = 512
"""Attention weights of longer segments are computed again for the gradient instead of held."""


class SegmentAttention(torch.autograd.Function):
    """query (tokens, heads, size), key and value (tokens, key heads, size) -> (tokens, heads, value size)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocks: Sequence[Block],
        prefix: int,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        copies = query.shape[1] // key.shape[1]
        output = query.new_empty(*query.shape[:2], value.shape[2])
        saved: list[torch.Tensor | None] = []
        for block in blocks:
            q, k, v = _take(query, block, copies), _take(key, block, 1), _take(value, block, 1)
            weights = _weights(q, k, causal_mask(block.length, copies, q.dtype, window), scale)
            _put(output, _tokens_first(weights @ v, block, copies), block)
            saved += [q, k, v, weights if block.length <= _HELD_LENGTH else None]
        ctx.save_for_backward(*saved)
        ctx.blocks, ctx.prefix, ctx.scale, ctx.window = blocks, prefix, scale, window
        ctx.shapes = query.shape, key.shape, value.shape
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        saved: Any = ctx.saved_tensors
        copies = ctx.shapes[0][1] // ctx.shapes[1][1]
        to_query, to_key, to_value = (gradients[0].new_empty(shape) for shape in ctx.shapes)
        shared: list[tuple[torch.Tensor, torch.Tensor]] = []
        for number, block in enumerate(ctx.blocks):
            q, k, v, weights = saved[4 * number : 4 * number + 4]
            if weights is None:
                weights = _weights(q, k, causal_mask(block.length, copies, q.dtype, ctx.window), ctx.scale)
            # Padding and copies of the prefix get no gradient from above.
            above = gradients[0].new_zeros(block.padded.numel(), *gradients[0].shape[1:])
            above.index_copy_(0, block.places, gradients[0].index_select(0, block.tokens))
            above = _grouped(above, block, copies)
            v_gradient = weights.transpose(1, 2) @ above
            scores = torch.ops.aten._softmax_backward_data(above @ v.transpose(1, 2), weights, -1, weights.dtype)
            q_gradient = (scores @ k).mul_(ctx.scale)
            k_gradient = (scores.transpose(1, 2) @ q).mul_(ctx.scale)
            _put(to_query, _tokens_first(q_gradient, block, copies), block)
            keys, values = _tokens_first(k_gradient, block, 1), _tokens_first(v_gradient, block, 1)
            _put(to_key, keys, block)
            _put(to_value, values, block)
            if ctx.prefix:
                shared.append((_prefix_sum(keys, block, ctx.prefix), _prefix_sum(values, block, ctx.prefix)))
        for keys, values in shared:
            to_key[: ctx.prefix] += keys
            to_value[: ctx.prefix] += values
        return to_query, to_key, to_value, None, None, None, None


def _grouped(padded: torch.Tensor, block: Block, copies: int) -> torch.Tensor:
    """(segments * length, heads, size) -> (segments * key heads, copies * length, size).

    Query heads that share a key head stand below each other: one product serves them all.
    """
    heads, size = padded.shape[1:]
    split = padded.view(-1, block.length, heads // copies, copies, size)
    return split.permute(0, 2, 3, 1, 4).reshape(-1, copies * block.length, size)


def _take(flat: torch.Tensor, block: Block, copies: int) -> torch.Tensor:
    return _grouped(flat.index_select(0, block.padded), block, copies)


def _tokens_first(states: torch.Tensor, block: Block, copies: int) -> torch.Tensor:
    """The way back from `_grouped`."""
    segments = block.padded.numel() // block.length
    split = states.view(segments, -1, copies, block.length, states.shape[-1])
    return split.permute(0, 3, 1, 2, 4).reshape(segments * block.length, -1, states.shape[-1])


def _weights(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax in fp32 inside the operation, rounded once."""
    return torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)


def _put(flat: torch.Tensor, padded: torch.Tensor, block: Block) -> None:
    flat.index_copy_(0, block.tokens, padded.index_select(0, block.places))


def _prefix_sum(padded: torch.Tensor, block: Block, prefix: int) -> torch.Tensor:
    """Gradient of the prefix from the segments that only see it."""
    copies = padded.view(-1, block.length, *padded.shape[1:])[block.first_copy :, :prefix]
    return copies.sum(0, dtype=torch.float32).to(padded.dtype)
