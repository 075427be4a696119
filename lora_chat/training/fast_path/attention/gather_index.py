"""Row indices that move each head of each token into padded blocks and back, by one gather instead of many copies.

States (tokens, heads, size) are read as rows (tokens * heads, size). In the gathered rows, each block has its
query rows (sequences, key heads, length, copies), then its key rows and its value rows (sequences, key heads, length).
"Copies" are the query heads that share a key head. The output of attention has the query rows of all blocks.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from lora_chat.training.fast_path.attention.blocks import PaddedBlock, build_blocks


@dataclass(frozen=True)
class GatheredBlock:
    """The position of one block in the gathered rows."""

    length: int
    groups: int
    """Sequences times key heads."""
    first_row: int
    """First row among the gathered rows."""
    first_out_row: int
    """First row among the output rows."""


@dataclass(frozen=True)
class BlockedLayout:
    """Row indices for a packed batch and its numbers of heads."""

    blocks: tuple[GatheredBlock, ...]
    gather_rows: torch.Tensor
    """Row of the states for every gathered row, with query + 2 * key heads per token."""
    grad_out_rows: torch.Tensor
    """Row of the packed output for every output row of the blocks, with `num_heads` per token."""
    zero_grad_rows: torch.Tensor
    """Output rows of padding and of copies of the prefix, which receive no gradient."""
    output_rows: torch.Tensor
    """Output row of the blocks for every row of the packed output."""
    ungather_rows: torch.Tensor
    """Gathered row for every row of the states."""
    prefix_copy_rows: torch.Tensor
    """Gathered rows of the copies of a shared prefix's keys and values, (copies, prefix, 2 * key heads)."""


@lru_cache(maxsize=64)
def build_blocked_layout(cu_seqlens: tuple[int, ...], prefix: int, num_heads: int, num_kv_heads: int) -> BlockedLayout:
    """Build the row indices from packed borders (sequences + 1), the length of a shared prefix, and the heads."""
    total_heads, tokens = num_heads + 2 * num_kv_heads, cu_seqlens[-1]
    gather_rows: list[torch.Tensor] = []
    grad_out_rows: list[torch.Tensor] = []
    zero_grad_rows: list[torch.Tensor] = []
    prefix_copy_rows: list[torch.Tensor] = []
    gathered_blocks = []
    output_rows = torch.empty(tokens, num_heads, dtype=torch.int64)
    ungather_rows = torch.empty(tokens, total_heads, dtype=torch.int64)
    # Head numbers in the order of the gathered rows: (1, key heads, 1, copies) and (1, key heads, 1).
    query_head = torch.arange(num_heads).view(1, num_kv_heads, 1, -1)
    key_head = torch.arange(num_kv_heads).view(1, num_kv_heads, 1)
    row_offset = out_offset = 0
    for block in build_blocks(cu_seqlens, prefix):
        sequences = block.padded_tokens.numel() // block.length
        token = block.padded_tokens.view(sequences, 1, block.length)
        # From the states to the gathered rows: queries, keys, values.
        keys = (token * total_heads + num_heads + key_head).flatten()
        gather_rows += [(token.unsqueeze(3) * total_heads + query_head).flatten(), keys, keys + num_kv_heads]
        # From the packed output to the output rows of the block.
        grad_out_rows.append((token.unsqueeze(3) * num_heads + query_head).flatten())
        gathered_blocks.append(GatheredBlock(block.length, sequences * num_kv_heads, row_offset, out_offset))
        # Back from the block's rows to the packed output and to the states, for the block's own tokens.
        query_rows, key_rows = _own_query_and_key_rows(block, num_heads, num_kv_heads)
        output_rows[block.own_tokens] = out_offset + query_rows
        first_key = row_offset + grad_out_rows[-1].numel()
        ungather_rows[block.own_tokens] = torch.cat(
            [row_offset + query_rows, first_key + key_rows, first_key + keys.numel() + key_rows], dim=1
        )
        # All other slots are padding or copies of the prefix.
        own = torch.zeros(sequences * block.length, dtype=torch.bool).index_fill_(0, block.own_slots, True)
        hidden = ~own.view(sequences, 1, block.length, 1).expand(-1, num_kv_heads, -1, num_heads // num_kv_heads)
        zero_grad_rows.append(out_offset + hidden.flatten().nonzero().squeeze(1))
        if prefix:
            # Key and value rows of the prefix in the sequences that contain a copy.
            rows = first_key + torch.arange(keys.numel()).view(sequences, num_kv_heads, block.length)
            rows = rows[block.first_prefix_copy :, :, :prefix].transpose(1, 2)
            prefix_copy_rows.append(torch.cat([rows, rows + keys.numel()], dim=2))
        row_offset, out_offset = first_key + 2 * keys.numel(), out_offset + grad_out_rows[-1].numel()
    return BlockedLayout(
        blocks=tuple(gathered_blocks),
        gather_rows=torch.cat(gather_rows),
        grad_out_rows=torch.cat(grad_out_rows),
        zero_grad_rows=torch.cat(zero_grad_rows),
        output_rows=output_rows.flatten(),
        ungather_rows=ungather_rows.flatten(),
        prefix_copy_rows=torch.cat(prefix_copy_rows)
        if prefix_copy_rows
        else torch.empty(0, 0, 2 * num_kv_heads, dtype=torch.int64),
    )


def _own_query_and_key_rows(block: PaddedBlock, num_heads: int, num_kv_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query rows (tokens, query heads) and key rows (tokens, key heads) of the block's own tokens."""
    sequence, position = block.own_slots // block.length, block.own_slots % block.length
    key_rows = sequence.unsqueeze(1) * num_kv_heads + torch.arange(num_kv_heads)
    key_rows = key_rows * block.length + position.unsqueeze(1)
    # The query heads of a key head have consecutive rows.
    query_rows = key_rows.unsqueeze(2) * (num_heads // num_kv_heads) + torch.arange(num_heads // num_kv_heads)
    return query_rows.flatten(1), key_rows
