"""Tests of the row indices that gather the heads of each dialogue and put them back."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.training.fast_path.attention.gather_index import build_blocked_layout


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=8),
    prefix=st.integers(0, 9),
    num_kv_heads=st.integers(1, 3),
    copies=st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_gathered_rows_are_heads_of_their_sequence_in_order(lengths, prefix, num_kv_heads, copies):
    lengths[0] += prefix
    cu_seqlens = (0, *torch.tensor(lengths).cumsum(0).tolist())
    num_heads, total_heads, tokens = num_kv_heads * copies, num_kv_heads * (copies + 2), cu_seqlens[-1]
    layout = build_blocked_layout(cu_seqlens, prefix, num_heads, num_kv_heads)
    states = torch.stack(torch.meshgrid(torch.arange(tokens), torch.arange(total_heads), indexing="ij"), dim=-1).view(
        -1, 2
    )
    gathered = states[layout.gather_rows]
    assert torch.equal(gathered[layout.ungather_rows], states)
    out_rows = []
    for block in layout.blocks:
        count = block.groups * block.length
        q = gathered[block.first_row :][: count * copies].view(-1, num_kv_heads, block.length, copies, 2)
        k = gathered[block.first_row + count * copies :][:count].view(-1, num_kv_heads, block.length, 2)
        v = gathered[block.first_row + count * (copies + 1) :][:count].view(-1, num_kv_heads, block.length, 2)
        for head in range(num_kv_heads):
            assert (k[:, head, :, 1] == num_heads + head).all()
            assert (v[:, head, :, 1] == num_heads + num_kv_heads + head).all()
            for copy in range(copies):
                assert (q[:, head, :, copy, 1] == head * copies + copy).all()
                assert torch.equal(q[:, head, :, copy, 0], k[:, head, :, 0])
        out_rows.append(q.reshape(-1, 2))
    out_rows = torch.cat(out_rows)
    expected = torch.stack(torch.meshgrid(torch.arange(tokens), torch.arange(num_heads), indexing="ij"), dim=-1)
    assert torch.equal(out_rows[layout.output_rows], expected.view(-1, 2))
    has_gradient = torch.ones(len(out_rows), dtype=torch.bool).index_fill_(0, layout.zero_grad_rows, False)
    assert sorted(layout.output_rows.tolist()) == has_gradient.nonzero().squeeze(1).tolist()
    copied = gathered[layout.prefix_copy_rows.flatten()].view(*layout.prefix_copy_rows.shape, 2)
    assert layout.prefix_copy_rows.shape[0] == (len(lengths) - 1 if prefix else 0)
    assert (copied[..., 0] == torch.arange(layout.prefix_copy_rows.shape[1]).view(1, -1, 1)).all()
    assert (copied[..., 1] == torch.arange(num_heads, total_heads)).all()
