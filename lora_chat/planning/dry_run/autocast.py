"""Autocast to bf16 for tensors on the meta device, which torch.autocast does not support."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_TO_BF16 = {torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.addmm}
_TO_BF16 |= {torch.bmm, torch.baddbmm, torch.Tensor.baddbmm, torch.mm, torch.Tensor.mm}
_TO_FP32 = {torch.nn.functional.layer_norm, torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax}
_TO_FP32 |= {torch.pow, torch.Tensor.pow, torch.rsqrt, torch.Tensor.rsqrt, torch.sum, torch.Tensor.sum, torch.exp}
_TO_FP32 |= {torch.Tensor.exp, torch.nn.functional.softplus, torch.Tensor.__pow__}


class Autocast(TorchFunctionMode):
    """CUDA's autocast to bf16, for the operations in these models (pytorch.org/docs/stable/amp.html)."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, torch.Tensor] | None = {}
        """Casts of trained weights, cached until the forward pass ends; None in the backward pass."""
        self.off = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.off or not (func in _TO_BF16 or func in _TO_FP32):
            return func(*args, **kwargs)
        dtype = torch.bfloat16 if func in _TO_BF16 else torch.float32
        self.off += 1
        try:
            return func(*(self._cast(a, dtype) for a in args), **{k: self._cast(v, dtype) for k, v in kwargs.items()})
        finally:
            self.off -= 1

    @contextmanager
    def setting(self, *args: Any, enabled: bool = True, **kwargs: Any) -> Iterator[None]:
        """Replace torch.autocast, which does not support the meta device."""
        self.off += not enabled
        yield
        self.off -= not enabled

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point or value.dtype == dtype:
            return value
        if self.cache is None or not (isinstance(value, torch.nn.Parameter) and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.cache:
            self.cache[id(value)] = value.to(dtype)
        return self.cache[id(value)]
