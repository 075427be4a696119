"""Where each head of each token goes for attention, and back: one gather instead of many small copies.

States (tokens, heads, size) are read as rows (tokens * heads, size). Gathered, every block of segments has its
query rows (segments, key heads, length, copies), then its key rows and its value rows (segments, key heads, length).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from lora_chat.training.fast_path.attention.blocks import PaddedBlock, build_blocks


@dataclass(frozen=True)
class GatheredBlock:
    """One block in the gathered rows."""

    length: int
    groups: int
    """Segments times key heads."""
    first_row: int
    """Its first row among the gathered."""
    first_out_row: int
    """Its first row among the mixed, which are the query rows alone."""


@dataclass(frozen=True)
class BlockedLayout:
    """Indices of rows, for a flat micro-batch and its numbers of heads."""

    blocks: tuple[GatheredBlock, ...]
    gather_rows: torch.Tensor
    """For every gathered row: the row of the states, (query + 2 * key) a token."""
    above: torch.Tensor
    """For every mixed row: the row of the output, `num_heads` a token."""
    zero_grad_rows: torch.Tensor
    """Mixed rows of padding and of a prefix's copies: no gradient comes to them from above."""
    output_rows: torch.Tensor
    """For every row of the output: its mixed row."""
    ungather_rows: torch.Tensor
    """For every row of the states: its gathered row."""
    prefix_copy_rows: torch.Tensor
    """(copies, prefix, 2 * key): gathered rows of the copies of a shared prefix's keys and values."""


@lru_cache(maxsize=64)
def build_blocked_layout(cu_seqlens: tuple[int, ...], prefix: int, num_heads: int, num_kv_heads: int) -> BlockedLayout:
    """Flat borders (segments + 1), tokens that all segments begin with, query and key heads -> the rows."""
    total_heads, tokens = num_heads + 2 * num_kv_heads, cu_seqlens[-1]
    gather_rows: list[torch.Tensor] = []
    grad_out_rows: list[torch.Tensor] = []
    zero_grad_rows: list[torch.Tensor] = []
    prefix_copy_rows: list[torch.Tensor] = []
    gathered_blocks = []
    output_rows, ungather_rows = (
        torch.empty(tokens, num_heads, dtype=torch.int64),
        torch.empty(tokens, total_heads, dtype=torch.int64),
    )
    query_head, key_head = (
        torch.arange(num_heads).view(1, num_kv_heads, 1, -1),
        torch.arange(num_kv_heads).view(1, num_kv_heads, 1),
    )
    row_offset = out_offset = 0
    for block in build_blocks(cu_seqlens, prefix):
        segments = block.padded_tokens.numel() // block.length
        token = block.padded_tokens.view(segments, 1, block.length)
        keys = (token * total_heads + num_heads + key_head).flatten()
        gather_rows += [(token.unsqueeze(3) * total_heads + query_head).flatten(), keys, keys + num_kv_heads]
        grad_out_rows.append((token.unsqueeze(3) * num_heads + query_head).flatten())
        gathered_blocks.append(GatheredBlock(block.length, segments * num_kv_heads, row_offset, out_offset))
        query_rows, key_rows = _own_query_and_key_rows(block, num_heads, num_kv_heads)
        output_rows[block.own_tokens] = out_offset + query_rows
        first_key = row_offset + grad_out_rows[-1].numel()
        ungather_rows[block.own_tokens] = torch.cat(
            [row_offset + query_rows, first_key + key_rows, first_key + keys.numel() + key_rows], dim=1
        )
        own = torch.zeros(segments * block.length, dtype=torch.bool).index_fill_(0, block.own_slots, True)
        hidden = ~own.view(segments, 1, block.length, 1).expand(-1, num_kv_heads, -1, num_heads // num_kv_heads)
        zero_grad_rows.append(out_offset + hidden.flatten().nonzero().squeeze(1))
        if prefix:
            rows = first_key + torch.arange(keys.numel()).view(segments, num_kv_heads, block.length)
            rows = rows[block.first_prefix_copy :, :, :prefix].transpose(1, 2)
            prefix_copy_rows.append(torch.cat([rows, rows + keys.numel()], dim=2))
        row_offset, out_offset = first_key + 2 * keys.numel(), out_offset + grad_out_rows[-1].numel()
    return BlockedLayout(
        blocks=tuple(gathered_blocks),
        gather_rows=torch.cat(gather_rows),
        above=torch.cat(grad_out_rows),
        zero_grad_rows=torch.cat(zero_grad_rows),
        output_rows=output_rows.flatten(),
        ungather_rows=ungather_rows.flatten(),
        prefix_copy_rows=torch.cat(prefix_copy_rows)
        if prefix_copy_rows
        else torch.empty(0, 0, 2 * num_kv_heads, dtype=torch.int64),
    )


def _own_query_and_key_rows(block: PaddedBlock, num_heads: int, num_kv_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For the block's own tokens: their query rows (tokens, query) and key rows (tokens, key) within the block."""
    segment, place = block.own_slots // block.length, block.own_slots % block.length
    key_rows = (segment.unsqueeze(1) * num_kv_heads + torch.arange(num_kv_heads)) * block.length + place.unsqueeze(1)
    query_rows = key_rows.unsqueeze(2) * (num_heads // num_kv_heads) + torch.arange(num_heads // num_kv_heads)
    return query_rows.flatten(1), key_rows
