"""A try of the attention for packed batches on a device, before a base is loaded."""

import torch

from lora_chat.errors import first_line
from lora_chat.training.fast_path.attention.backends import (
    attention_backward,
    attention_forward,
    build_attention_layout,
)
from lora_chat.training.fast_path.attention.cpu import HeadConfig

_BORDERS = (0, 5, 16)
_HEADS = HeadConfig(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25, window=None)


def try_packed_attention(device: str, dtype: torch.dtype) -> str:
    """Run forward and backward of two sequences. Return the problem, or an empty string if it worked."""
    try:
        shape = (_BORDERS[-1], _HEADS.num_heads + 2 * _HEADS.num_kv_heads, _HEADS.head_dim)
        states = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        layout = build_attention_layout(_BORDERS, 0, _HEADS, states.device)
        out, saved = attention_forward(states, _HEADS, layout)
        gradient = attention_backward(torch.ones_like(out), saved, _HEADS, layout)
    except Exception as problem:  # versions of PyTorch and devices lack the kernel in different ways
        return first_line(problem)
    return "" if bool(out.isfinite().all() and gradient.isfinite().all()) else "its results are not finite"
