"""Choice of the call of PyTorch's variable-length attention, whose arguments differ between versions.

2.10 has `is_causal` and no window; 2.11 has `window_size`; from 2.12 on, `enable_gqa` must allow fewer key heads than
query heads. Before that, the flash kernel takes fewer key heads without being asked.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from lora_chat.training.fast_path.attention.cpu import HeadConfig

_Borders = tuple[torch.Tensor, torch.Tensor, int, int]
"""Borders of the queries and of the keys, and the longest sequence of each."""
_MAX_DIFFERENCE = 0.05
"""Largest relative difference of output and gradients between two calls. Rounding in bf16 causes about 0.01."""


@dataclass(frozen=True)
class VarlenKernel:
    """PyTorch's function, with the arguments that it has in this version."""

    function: Callable[..., Any]
    names: frozenset[str]
    """Names of the function's parameters."""
    expands_keys: bool
    """Whether keys and values are repeated for every query head."""

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, borders: _Borders, heads: HeadConfig
    ) -> torch.Tensor:
        """Return causal attention (tokens, query heads, size). Raises NotImplementedError for a missing argument."""
        options: dict[str, object] = {"scale": heads.scale}
        if "scale" not in self.names:
            if heads.scale != queries.shape[-1] ** -0.5:
                raise NotImplementedError("attention of this version of PyTorch has no scale")
            del options["scale"]
        if "window_size" in self.names:
            # The kernel counts the tokens before the query; -1 means no window.
            options["window_size"] = (-1 if heads.window is None else heads.window - 1, 0)
        elif heads.window is None:
            options["is_causal"] = True
        else:
            raise NotImplementedError("attention of PyTorch before 2.11 has no sliding window")
        if self.expands_keys:
            keys, values = (_repeat_heads(part, heads.heads_per_kv_head) for part in (keys, values))
        elif "enable_gqa" in self.names:
            options["enable_gqa"] = True
        attn_out: torch.Tensor = self.function(queries, keys, values, *borders, **options)
        return attn_out


def find_varlen_kernel(device: torch.device, dtype: torch.dtype) -> VarlenKernel:
    """Return the call that works on a device, chosen by a try once per process."""
    from torch.nn.attention.varlen import varlen_attn

    return _try_kernels(varlen_attn, device, dtype)


@lru_cache(maxsize=8)
def _try_kernels(function: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> VarlenKernel:
    """Return the call with fewer key heads if it gives the same as repeated keys, which every version takes.

    Raises the error of the call with repeated keys, which means that the kernel does not run on the device.
    """
    names = frozenset(inspect.signature(function).parameters)
    expanding = VarlenKernel(function, names, expands_keys=True)
    expected = _run_sample(expanding, device, dtype)
    grouped = VarlenKernel(function, names, expands_keys=False)
    try:
        actual = _run_sample(grouped, device, dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return expanding
    # A wrong kernel may also return non-finite values, which compare as different.
    agree = all((a - e).norm() <= _MAX_DIFFERENCE * e.norm() for a, e in zip(actual, expected, strict=True))
    return grouped if agree else expanding


def _run_sample(kernel: VarlenKernel, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return output and gradients of two short sequences with two query heads for each key head, in fp32."""
    generator = torch.Generator().manual_seed(0)
    heads = HeadConfig(num_heads=4, num_kv_heads=2, head_dim=32, scale=32**-0.5, window=None)
    queries, keys, values, grad_out = (
        torch.randn(24, count, heads.head_dim, generator=generator).to(device, dtype) for count in (4, 2, 2, 4)
    )
    cu_seqlens = torch.tensor([0, 8, 24], dtype=torch.int32, device=device)
    with torch.enable_grad():
        for leaf in (queries, keys, values):
            leaf.requires_grad_()
        output = kernel(queries, keys, values, (cu_seqlens, cu_seqlens, 16, 16), heads)
    gradients = torch.autograd.grad(output, (queries, keys, values), grad_out)
    return [tensor.detach().float() for tensor in (output, *gradients)]


def _repeat_heads(states: torch.Tensor, copies: int) -> torch.Tensor:
    """Repeat every head of states (tokens, heads, size) next to itself."""
    return states.unsqueeze(2).expand(-1, -1, copies, -1).flatten(1, 2)
