"""Gathering the heads of each dialogue for attention, and putting them back."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.training.fast_path.attention.gather_index import build_blocked_layout


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=8),
    prefix=st.integers(0, 9),
    key=st.integers(1, 3),
    copies=st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_gathered_rows_are_the_heads_of_their_segment_in_order(lengths, prefix, key, copies):
    lengths[0] += prefix
    edges = (0, *torch.tensor(lengths).cumsum(0).tolist())
    query, heads, tokens = key * copies, key * (copies + 2), edges[-1]
    rows = build_blocked_layout(edges, prefix, query, key)
    states = torch.stack(torch.meshgrid(torch.arange(tokens), torch.arange(heads), indexing="ij"), dim=-1).view(-1, 2)
    gathered = states[rows.gather_rows]
    assert torch.equal(gathered[rows.ungather_rows], states)
    mixed = []
    for piece in rows.blocks:
        count = piece.groups * piece.length
        q = gathered[piece.first_row :][: count * copies].view(-1, key, piece.length, copies, 2)
        k = gathered[piece.first_row + count * copies :][:count].view(-1, key, piece.length, 2)
        v = gathered[piece.first_row + count * (copies + 1) :][:count].view(-1, key, piece.length, 2)
        for head in range(key):
            assert (k[:, head, :, 1] == query + head).all()
            assert (v[:, head, :, 1] == query + key + head).all()
            for copy in range(copies):
                assert (q[:, head, :, copy, 1] == head * copies + copy).all()
                assert torch.equal(q[:, head, :, copy, 0], k[:, head, :, 0])
        mixed.append(q.reshape(-1, 2))
    mixed = torch.cat(mixed)
    expected = torch.stack(torch.meshgrid(torch.arange(tokens), torch.arange(query), indexing="ij"), dim=-1)
    assert torch.equal(mixed[rows.output_rows], expected.view(-1, 2))
    spoken = torch.ones(len(mixed), dtype=torch.bool).index_fill_(0, rows.zero_grad_rows, False)
    assert sorted(rows.output_rows.tolist()) == spoken.nonzero().squeeze(1).tolist()
    copied = gathered[rows.prefix_copy_rows.flatten()].view(*rows.prefix_copy_rows.shape, 2)
    assert rows.prefix_copy_rows.shape[0] == (len(lengths) - 1 if prefix else 0)
    assert (copied[..., 0] == torch.arange(rows.prefix_copy_rows.shape[1]).view(1, -1, 1)).all()
    assert (copied[..., 1] == torch.arange(query, heads)).all()
