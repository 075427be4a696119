"""Replacement of the GPU's attention kernel by a slow function on the CPU."""

import pytest
import torch

from lora_chat.training.fast_path.attention import backends
from lora_chat.training.fast_path.attention.gpu import build_varlen_layout


def slow_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """Return attention of each sequence, with the ends of queries and keys aligned as in flash attention."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert window_size[1] == 0
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    heads_per_kv_head = query.shape[1] // key.shape[1]
    results = []
    for number in range(len(cu_seq_q) - 1):
        queries = query[cu_seq_q[number] : cu_seq_q[number + 1]].transpose(0, 1)
        key_range = slice(cu_seq_k[number], cu_seq_k[number + 1])
        keys, values = (
            part[key_range].transpose(0, 1).repeat_interleave(heads_per_kv_head, 0) for part in (key, value)
        )
        lengths = queries.shape[1], keys.shape[1]
        distance = torch.arange(lengths[0])[:, None] + lengths[1] - lengths[0] - torch.arange(lengths[1])
        hidden = (distance < 0) | ((distance > window_size[0]) & (window_size[0] >= 0))
        scores = (queries @ keys.transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
        results.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(results)


@pytest.fixture
def varlen(monkeypatch):
    """Replace the kernel, and return the function that replaces it."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", slow_varlen)
    monkeypatch.setattr(
        backends,
        "build_blocked_layout",
        lambda cu_seqlens, prefix, num_heads, num_kv_heads: build_varlen_layout(
            cu_seqlens, prefix, torch.device("cpu")
        ),
    )
    return slow_varlen
