"""Weights of a base in FP8 or MXFP4, dequantized while they are read.

Transformers can dequantize both, but derives the size of FP8 blocks from the number of scales, which is wrong for a
layer whose size is no multiple of the block, and it writes such a model in FP8 again. Read as plain 16-bit weights, the
base is an ordinary one for training, merging and exporting.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.stored_quantization import StoredQuantization
from lora_chat.errors import IntegrityError
from lora_chat.system.safetensors_header import TensorHeader
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    import torch

_FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
_SCALE_DTYPES = ("F32", "F16", "BF16", "F64")
_SCALE_SUFFIX = "_scale_inv"
_ACTIVATION_SCALES = ("activation_scale", "input_scale")
"""Scales of activations, which only kernels for FP8 use."""
_BLOCKS_SUFFIX, _SCALES_SUFFIX = "_blocks", "_scales"
_MXFP4_BLOCK = 32
"""Number of weights with one scale in MXFP4; 16 bytes hold them."""


@dataclass(frozen=True)
class StoredTensor:
    """How one dequantized tensor is made from the tensors in the files."""

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    convert: "Callable[[Sequence[torch.Tensor]], torch.Tensor]"


def plan_dequantization(
    name: str, stored: StoredQuantization, headers: Mapping[str, TensorHeader], block_size: Sequence[int] | None
) -> dict[str, StoredTensor]:
    """Return the conversions of all quantized weights by the name of the dequantized weight.

    `block_size` is the size of FP8 blocks in the config, or None for one scale for each weight. Raises IntegrityError
    for a weight without its scale or with a scale of another shape.
    """
    if stored.method == "fp8":
        tensors = {
            key: _plan_fp8(name, key, headers, block_size)
            for key, header in headers.items()
            if header.dtype in _FP8_DTYPES and not key.endswith(_SCALE_SUFFIX)
        }
    else:
        tensors = {
            key.removesuffix(_BLOCKS_SUFFIX): _plan_mxfp4(name, key, headers)
            for key in headers
            if key.endswith(_BLOCKS_SUFFIX)
        }
    if not tensors:
        raise IntegrityError(
            f"The config of {name} declares weights in {stored.title}, and its files contain none. "
            "Fix: copy or download the base again."
        )
    return tensors


def dequantized_headers(
    headers: Mapping[str, TensorHeader], plan: Mapping[str, StoredTensor]
) -> dict[str, TensorHeader]:
    """Return the headers of the weights as they are after dequantization."""
    consumed = {source for tensor in plan.values() for source in tensor.sources}
    plain = {
        key: header
        for key, header in headers.items()
        if key not in consumed and key.rpartition(".")[2] not in _ACTIVATION_SCALES
    }
    return plain | {key: TensorHeader("BF16", tensor.shape) for key, tensor in plan.items()}


def read_dequantized_weights(paths: Iterable[Path], plan: Mapping[str, StoredTensor]) -> "dict[str, torch.Tensor]":
    """Read all weights of a base in bf16, as far as they were quantized, and in their own dtype otherwise."""
    from contextlib import ExitStack

    from safetensors import safe_open

    consumed = {source for tensor in plan.values() for source in tensor.sources}
    weights = {}
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in paths:
            file = stack.enter_context(safe_open(path, "pt"))
            files |= dict.fromkeys(file.keys(), file)
        for key, file in files.items():
            if key not in consumed and key.rpartition(".")[2] not in _ACTIVATION_SCALES:
                weights[key] = file.get_tensor(key)
        for key, tensor in plan.items():
            weights[key] = tensor.convert([files[source].get_tensor(source) for source in tensor.sources])
    return weights


def _plan_fp8(
    name: str, key: str, headers: Mapping[str, TensorHeader], block_size: Sequence[int] | None
) -> StoredTensor:
    """Return the conversion of a weight (rows, columns) in FP8: a scale for each block, or one scale."""
    shape, scale_key = headers[key].shape, key + _SCALE_SUFFIX
    scale = headers.get(scale_key)
    if scale is None or scale.dtype not in _SCALE_DTYPES:
        problem = "has no scale" if scale is None else f"has a scale in {scale.dtype}"
        raise _damaged(name, key, f"{problem} ({scale_key})")
    if all(size == 1 for size in scale.shape):  # one scale for the whole weight
        return StoredTensor((key, scale_key), shape, lambda tensors: _dequantize_fp8(tensors, None))
    blocks = tuple(block_size) if block_size else ()
    expected = tuple(-(-size // block) for size, block in zip(shape[-2:], blocks, strict=False))
    if len(shape) != 2 or len(blocks) != 2 or scale.shape != expected:
        raise _damaged(name, key, f"has {scale.shape} scales for {shape} weights in blocks of {blocks or 'no size'}")
    return StoredTensor((key, scale_key), shape, lambda tensors: _dequantize_fp8(tensors, (blocks[0], blocks[1])))


def _dequantize_fp8(tensors: "Sequence[torch.Tensor]", block: tuple[int, int] | None) -> "torch.Tensor":
    """Return weights (rows, columns) in bf16: each FP8 value times the fp32 scale of its block."""
    import torch

    weight, scale = tensors[0].float(), tensors[1].float()
    if block is None:
        return (weight * scale.reshape(())).to(torch.bfloat16)
    rows, columns = weight.shape
    # The last block of a row or column may be cut off.
    full = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight.mul_(full).to(torch.bfloat16)


def _plan_mxfp4(name: str, key: str, headers: Mapping[str, TensorHeader]) -> StoredTensor:
    """Return the conversion of experts in MXFP4: blocks (experts, out, groups, 16), scales (experts, out, groups)."""
    shape, scale_key = headers[key].shape, key.removesuffix(_BLOCKS_SUFFIX) + _SCALES_SUFFIX
    scale = headers.get(scale_key)
    if scale is None:
        raise _damaged(name, key, f"has no scales ({scale_key})")
    is_bytes = headers[key].dtype == "U8" and scale.dtype == "U8"
    if not is_bytes or len(shape) != 4 or shape[3] != _MXFP4_BLOCK // 2 or scale.shape != shape[:3]:
        raise _damaged(name, key, f"has {scale.shape} scales for {shape} blocks")
    # Transformers stores experts as (experts, in, out).
    return StoredTensor((key, scale_key), (shape[0], shape[2] * _MXFP4_BLOCK, shape[1]), _dequantize_mxfp4)


def _dequantize_mxfp4(tensors: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Return experts (experts, in, out) in bf16."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    dense: torch.Tensor = convert_moe_packed_tensors(tensors[0], tensors[1], dtype=torch.bfloat16)
    return dense


def _damaged(name: str, key: str, problem: str) -> IntegrityError:
    """Return the error for a quantized weight that cannot be dequantized."""
    return IntegrityError(
        f"The quantized weights of {name} are damaged: {sanitize_line(key, 120)} {problem}. "
        "Fix: copy or download the base again."
    )
