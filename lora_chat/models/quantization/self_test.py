"""A try of bitsandbytes on a device with a few thousand weights, before a base is loaded with it."""

from typing import TYPE_CHECKING, Literal

from lora_chat.errors import first_line

if TYPE_CHECKING:
    import torch

_SIZE = 64
"""Rows and columns of the quantized matrix, one block of 4-bit quantization each."""
_MAX_RELATIVE_ERRORS = {"4bit": 0.2, "8bit": 0.02}
"""Largest accepted error of a quantized matrix, relative to its norm; NF4 has 0.09, LLM.int8 0.006."""


def read_native_library() -> str:
    """Return the file name of the native library that bitsandbytes has loaded."""
    from bitsandbytes.cextension import lib

    loaded = getattr(lib, "_lib", None)
    return str(getattr(loaded, "_name", "none")).replace("\\", "/").rsplit("/", 1)[-1]


def try_quantization(mode: Literal["4bit", "8bit"], device: str) -> str:
    """Quantize and dequantize a matrix on a device. Return the problem, or an empty string if it worked."""
    import torch

    try:
        weights = torch.randn(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0)).to(device)
        restored = _round_trip_4bit(weights) if mode == "4bit" else _round_trip_8bit(weights)
        error = float((restored.float() - weights).norm() / weights.norm())
    except Exception as problem:  # a library of native code fails in many ways
        return first_line(problem)
    return "" if error <= _MAX_RELATIVE_ERRORS[mode] else f"values are off by {error:.0%}"


def _round_trip_4bit(weights: "torch.Tensor") -> "torch.Tensor":
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weights, quant_type="nf4")
    restored: torch.Tensor = dequantize_4bit(packed, state)
    return restored


def _round_trip_8bit(weights: "torch.Tensor") -> "torch.Tensor":
    """Quantize to 8 bits, and multiply by a quantized diagonal, because training multiplies 8-bit integers."""
    import torch
    from bitsandbytes.functional import int8_linear_matmul, int8_mm_dequant, int8_vectorwise_quant

    diagonal = torch.eye(_SIZE, dtype=torch.float16, device=weights.device)
    left, left_scales, _ = int8_vectorwise_quant(weights.half())
    right, right_scales, _ = int8_vectorwise_quant(diagonal)
    restored: torch.Tensor = int8_mm_dequant(int8_linear_matmul(left, right), left_scales, right_scales)
    return restored
