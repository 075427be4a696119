"""The layout for variable-length flash attention (a GPU's) says the same as padded blocks (a CPU's).

PyTorch has the kernel for CUDA alone, so a slow function with its signature stands in here (conftest.py).
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
    ("edges", "prefix"), [((0, 12), 0), ((0, 5, 6, 30), 0), ((0, 20, 31, 32, 60), 7), ((0, 8, 9), 8)]
)
def test_both_layouts_mix_alike(varlen, edges, prefix, window):
    heads = HeadConfig(num_heads=6, num_kv_heads=2, head_dim=4, scale=0.3, window=window)
    generator = torch.Generator().manual_seed(len(edges))
    states = torch.randn(edges[-1], 10, 4, generator=generator)
    above = torch.randn(edges[-1], 6, 4, generator=generator)
    blocks, rows = build_blocked_layout(edges, prefix, 6, 2), build_varlen_layout(edges, prefix, CPU)
    expected, held = blocked_attention_forward(states, heads, blocks)
    mixed, kept = varlen_attention_forward(states, heads, rows)
    assert torch.allclose(mixed, expected, atol=1e-6)
    gradient = varlen_attention_backward(above, kept)
    assert torch.allclose(gradient, blocked_attention_backward(above, held, heads, blocks), atol=1e-6)


def test_the_kernel_takes_halves_with_heads_of_up_to_256():
    assert supports_varlen(torch.empty(1, 256, dtype=torch.bfloat16))
    assert not supports_varlen(torch.empty(1, 64))
    assert not supports_varlen(torch.empty(1, 512, dtype=torch.bfloat16))
