"""The layout for variable-length flash attention (a GPU's) says the same as padded blocks (a CPU's).

PyTorch has the kernel for CUDA alone, so a slow function with its signature stands in here (conftest.py).
"""

import pytest
import torch

from lora_chat.training.fast_path.attention.cpu import Heads, attend_blocks, blocks_gradient
from lora_chat.training.fast_path.attention.gather_index import find_rows
from lora_chat.training.fast_path.attention.gpu import attend_varlen, covers, find_varlen, varlen_gradient

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", [None, 9, 1])
@pytest.mark.parametrize(
    ("edges", "prefix"), [((0, 12), 0), ((0, 5, 6, 30), 0), ((0, 20, 31, 32, 60), 7), ((0, 8, 9), 8)]
)
def test_both_layouts_mix_alike(varlen, edges, prefix, window):
    heads = Heads(query=6, key=2, size=4, scale=0.3, window=window)
    generator = torch.Generator().manual_seed(len(edges))
    states = torch.randn(edges[-1], 10, 4, generator=generator)
    above = torch.randn(edges[-1], 6, 4, generator=generator)
    blocks, rows = find_rows(edges, prefix, 6, 2), find_varlen(edges, prefix, CPU)
    expected, held = attend_blocks(states, heads, blocks)
    mixed, kept = attend_varlen(states, heads, rows)
    assert torch.allclose(mixed, expected, atol=1e-6)
    gradient = varlen_gradient(above, kept)
    assert torch.allclose(gradient, blocks_gradient(above, held, heads, blocks), atol=1e-6)


def test_the_kernel_takes_halves_with_heads_of_up_to_256():
    assert covers(torch.empty(1, 256, dtype=torch.bfloat16))
    assert not covers(torch.empty(1, 64))
    assert not covers(torch.empty(1, 512, dtype=torch.bfloat16))
