"""Tests that variable-length attention (GPU) equals attention in padded blocks (CPU).

PyTorch has the kernel only for CUDA, so a slow function with the same signature replaces it (conftest.py).
"""

import pytest
import torch

from lora_chat.training.fast_path.attention.cpu import HeadConfig, blocked_attention_backward, blocked_attention_forward
from lora_chat.training.fast_path.attention.gather_index import build_blocked_layout
from lora_chat.training.fast_path.attention.gpu import (
    build_varlen_layout,
    supports_varlen,
    varlen_attention_backward,
    varlen_attention_forward,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", [None, 9, 1])
@pytest.mark.parametrize(
    ("cu_seqlens", "prefix"), [((0, 12), 0), ((0, 5, 6, 30), 0), ((0, 20, 31, 32, 60), 7), ((0, 8, 9), 8)]
)
def test_varlen_attention_equals_blocked_attention(varlen, cu_seqlens, prefix, window):
    heads = HeadConfig(num_heads=6, num_kv_heads=2, head_dim=4, scale=0.3, window=window)
    generator = torch.Generator().manual_seed(len(cu_seqlens))
    states = torch.randn(cu_seqlens[-1], 10, 4, generator=generator)
    grad_out = torch.randn(cu_seqlens[-1], 6, 4, generator=generator)
    blocked_layout = build_blocked_layout(cu_seqlens, prefix, 6, 2)
    varlen_layout = build_varlen_layout(cu_seqlens, prefix, CPU)
    expected, blocked_saved = blocked_attention_forward(states, heads, blocked_layout)
    attn_out, varlen_saved = varlen_attention_forward(states, heads, varlen_layout)
    assert torch.allclose(attn_out, expected, atol=1e-6)
    gradient = varlen_attention_backward(grad_out, varlen_saved)
    assert torch.allclose(
        gradient, blocked_attention_backward(grad_out, blocked_saved, heads, blocked_layout), atol=1e-6
    )


def test_kernel_supports_16_bit_heads_up_to_256():
    assert supports_varlen(torch.empty(1, 256, dtype=torch.bfloat16))
    assert not supports_varlen(torch.empty(1, 64))
    assert not supports_varlen(torch.empty(1, 512, dtype=torch.bfloat16))
