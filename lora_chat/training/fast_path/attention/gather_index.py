"""Where each head of each token goes for attention, and back: one gather instead of many small copies.

States (tokens, heads, size) are read as rows (tokens * heads, size). Gathered, every block of segments has its
query rows (segments, key heads, length, copies), then its key rows and its value rows (segments, key heads, length).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from lora_chat.training.fast_path.attention.blocks import Block, lay_out


@dataclass(frozen=True)
class Piece:
    """One block in the gathered rows."""

    length: int
    groups: int
    """Segments times key heads."""
    begin: int
    """Its first row among the gathered."""
    mixed: int
    """Its first row among the mixed, which are the query rows alone."""


@dataclass(frozen=True)
class HeadRows:
    """Indices of rows, for a flat micro-batch and its numbers of heads."""

    pieces: tuple[Piece, ...]
    gather: torch.Tensor
    """For every gathered row: the row of the states, (query + 2 * key) a token."""
    above: torch.Tensor
    """For every mixed row: the row of the output, `query` a token."""
    silent: torch.Tensor
    """Mixed rows of padding and of a prefix's copies: no gradient comes to them from above."""
    output: torch.Tensor
    """For every row of the output: its mixed row."""
    back: torch.Tensor
    """For every row of the states: its gathered row."""
    shared: torch.Tensor
    """(copies, prefix, 2 * key): gathered rows of the copies of a shared prefix's keys and values."""


@lru_cache(maxsize=64)
def find_rows(edges: tuple[int, ...], prefix: int, query: int, key: int) -> HeadRows:
    """Flat borders (segments + 1), tokens that all segments begin with, query and key heads -> the rows."""
    heads, tokens = query + 2 * key, edges[-1]
    gather: list[torch.Tensor] = []
    above: list[torch.Tensor] = []
    silent: list[torch.Tensor] = []
    shared: list[torch.Tensor] = []
    pieces = []
    output, back = torch.empty(tokens, query, dtype=torch.int64), torch.empty(tokens, heads, dtype=torch.int64)
    query_head, key_head = torch.arange(query).view(1, key, 1, -1), torch.arange(key).view(1, key, 1)
    begin = mixed = 0
    for block in lay_out(edges, prefix):
        segments = block.padded.numel() // block.length
        token = block.padded.view(segments, 1, block.length)
        keys = (token * heads + query + key_head).flatten()
        gather += [(token.unsqueeze(3) * heads + query_head).flatten(), keys, keys + key]
        above.append((token.unsqueeze(3) * query + query_head).flatten())
        pieces.append(Piece(block.length, segments * key, begin, mixed))
        of_query, of_key = _places(block, query, key)
        output[block.tokens] = mixed + of_query
        first_key = begin + above[-1].numel()
        back[block.tokens] = torch.cat([begin + of_query, first_key + of_key, first_key + keys.numel() + of_key], dim=1)
        own = torch.zeros(segments * block.length, dtype=torch.bool).index_fill_(0, block.places, True)
        hidden = ~own.view(segments, 1, block.length, 1).expand(-1, key, -1, query // key)
        silent.append(mixed + hidden.flatten().nonzero().squeeze(1))
        if prefix:
            rows = first_key + torch.arange(keys.numel()).view(segments, key, block.length)
            rows = rows[block.first_copy :, :, :prefix].transpose(1, 2)
            shared.append(torch.cat([rows, rows + keys.numel()], dim=2))
        begin, mixed = first_key + 2 * keys.numel(), mixed + above[-1].numel()
    return HeadRows(
        pieces=tuple(pieces),
        gather=torch.cat(gather),
        above=torch.cat(above),
        silent=torch.cat(silent),
        output=output.flatten(),
        back=back.flatten(),
        shared=torch.cat(shared) if shared else torch.empty(0, 0, 2 * key, dtype=torch.int64),
    )


def _places(block: Block, query: int, key: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For the block's own tokens: their query rows (tokens, query) and key rows (tokens, key) within the block."""
    segment, place = block.places // block.length, block.places % block.length
    of_key = (segment.unsqueeze(1) * key + torch.arange(key)) * block.length + place.unsqueeze(1)
    of_query = of_key.unsqueeze(2) * (query // key) + torch.arange(query // key)
    return of_query.flatten(1), of_key
