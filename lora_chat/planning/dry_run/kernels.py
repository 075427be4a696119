"""Replacements of fused attention and norms on the meta device, which allocate and save the same bytes."""

from typing import Any

import torch


class _Attention(torch.autograd.Function):
    """Replacement of PyTorch's fused attention, which saves its inputs, its output and a sum for every query."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
        copied = q.transpose(1, 2).contiguous()
        result = copied.new_empty(*copied.shape[:-1], v.shape[-1]).transpose(1, 2)
        del copied
        sums = torch.empty(q.shape[:-1], dtype=torch.float32, device="meta")
        bias = None if mask is None else mask.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, sums, bias)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


def fused_attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
    """Replace torch.nn.functional.scaled_dot_product_attention."""
    result: torch.Tensor = _Attention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return result


class _RmsNorm(torch.autograd.Function):
    """Replacement of PyTorch's fused RMS norm, which saves the states and one number for each token."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: Any, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, torch.empty(x.shape[:-1], dtype=torch.float32, device="meta"))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.empty_like(ctx.saved_tensors[0]), None, None


def fused_rms_norm(x: torch.Tensor, size: Any, eps: float) -> torch.Tensor:
    """Replace torch.nn.functional.rms_norm."""
    result: torch.Tensor = _RmsNorm.apply(x, size, eps)  # type: ignore[no-untyped-call]
    return result


def count_groups(values: torch.Tensor, bins: int, **limits: object) -> torch.Tensor:
    """Replace torch.histc, which the meta device lacks."""
    return torch.empty(bins, dtype=values.dtype, device=values.device)
