"""Rotary position embedding (arXiv 2104.09864) in place, in the half-split order of transformers."""

import torch


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn states (tokens, heads, size) by cos and sin (tokens, 1, size / 2); minus sin turns back."""
    half = states.shape[-1] // 2
    first, second = states[..., :half], states[..., half:]
    turned = (first * cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)
