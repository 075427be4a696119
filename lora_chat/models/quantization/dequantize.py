"""The dense weight of a frozen linear layer in any format: dense, 4 bits or 8 bits."""

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_chat.config.limits import INT8_CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from bitsandbytes.nn import Params4bit

CACHED_WEIGHT_ATTRIBUTE = "dense_weight"
"""Attribute of a layer with its cached dense weight."""
_BUFFER_ATTRIBUTE = "dense_buffer"
"""Attribute of a layer with the buffer that it shares with others."""
_WEIGHTS_PER_CHUNK = {"4bit": 2**19, "8bit": 2**18}
"""Number of weights that are dequantized at once, so that they fit a processor's cache; 8-bit values are fp32 first."""
_GPU_WEIGHTS_PER_CHUNK = INT8_CHUNK_BYTES // 8
"""The same for 8-bit weights on a GPU, where two fp32 tensors of a chunk exist at once."""

_LAYER_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


def layer_kind(name: str) -> str:
    """Return the name of a layer without its number: model.layers.3.mlp.up_proj -> model.layers..mlp.up_proj."""
    return _LAYER_INDEX.sub("", name)


def get_dense_weight(layer: "torch.nn.Module", dtype: "torch.dtype | None" = None) -> "torch.Tensor":
    """Return the dense weight (out, in) of a linear layer, in `dtype` if it is not None."""
    return _dequantize(layer, dtype, None)


def get_buffered_dense_weight(layer: "torch.nn.Module", dtype: "torch.dtype | None" = None) -> "torch.Tensor":
    """Return the dense weight for one product. In a shared buffer, the next call overwrites it."""
    return _dequantize(layer, dtype, layer.__dict__.get(_BUFFER_ATTRIBUTE))


def assign_shared_buffer(layers: "Sequence[Any]", dtype: "torch.dtype") -> "torch.Tensor":
    """Let `get_buffered_dense_weight` write the weights of these layers into one buffer, which is returned.

    Separate allocations would fragment memory, because the C library does not reuse freed blocks of the same size. If
    freed memory is returned at once instead, every product waits for the kernel to map and clear pages.
    """
    import torch

    buffer = torch.empty(max((m.in_features * m.out_features for m in layers), default=0), dtype=dtype)
    for layer in layers:
        setattr(layer, _BUFFER_ATTRIBUTE, buffer)
    return buffer


@contextmanager
def shared_buffer(model: "torch.nn.Module") -> "Iterator[int]":
    """Assign a shared buffer until the block ends, and yield its size in bytes.

    It is for layers on a CPU that are dequantized at every call and have no buffer yet.
    """
    dtype: Any = model.dtype
    layers = [m for m in model.modules() if is_dequantized_on_the_fly(m) and _BUFFER_ATTRIBUTE not in m.__dict__]
    buffer = assign_shared_buffer(layers, dtype)
    try:
        yield buffer.nbytes
    finally:
        for layer in layers:
            delattr(layer, _BUFFER_ATTRIBUTE)


def is_shard(weight: "torch.Tensor") -> bool:
    """Return whether this process has only a part of a weight now; FSDP makes it whole for a forward and backward."""
    return hasattr(weight, "device_mesh")


def is_int8_linear(layer: object) -> bool:
    """Return whether a layer is a base layer in LLM.int8. PEFT's layer around one has the same class name."""
    return type(layer).__name__ == "Linear8bitLt" and not hasattr(layer, "base_layer")


def is_int8_on_gpu(layer: "torch.nn.Module") -> bool:
    """Return whether a layer is a base layer in LLM.int8 on a GPU, where it would round activations in training."""
    return is_int8_linear(layer) and layer.weight.device.type != "cpu"


def is_dequantized_on_the_fly(layer: object) -> bool:
    """Return whether a layer is dequantized at every call, on a CPU."""
    if hasattr(layer, "base_layer"):  # PEFT's layer around a base layer
        return False
    weight = getattr(layer, "weight", None)
    if weight is None or not (is_int8_linear(layer) or getattr(weight, "quant_state", None) is not None):
        return False
    return weight.device.type == "cpu" and CACHED_WEIGHT_ATTRIBUTE not in vars(layer)


def _dequantize(layer: "torch.nn.Module", dtype: "torch.dtype | None", buffer: "torch.Tensor | None") -> "torch.Tensor":
    """Return the dense weight of a layer, in the buffer if there is one and the format allows it."""
    cached = layer.__dict__.get(CACHED_WEIGHT_ATTRIBUTE)
    if cached is not None:
        dense: torch.Tensor = cached.to(dtype)
        return dense
    weight: Any = layer.weight
    if getattr(weight, "quant_state", None) is not None:
        return _dequantize_4bit(weight, buffer, dtype)
    scales = _int8_scales(layer)
    if scales is None:
        stored: torch.Tensor = weight.detach().to(dtype)
        return stored
    return _dequantize_8bit(weight.data, scales, buffer, dtype)


def _int8_scales(layer: "torch.nn.Module") -> "torch.Tensor | None":
    """Return the scales (out,) of an 8-bit layer; None for other layers."""
    scales = getattr(layer.weight, "SCB", None)
    if scales is None:  # the first forward moves them into the state
        scales = getattr(getattr(layer, "state", None), "SCB", None)
    return scales


def _dequantize_4bit(
    weight: "Params4bit", buffer: "torch.Tensor | None", dtype: "torch.dtype | None"
) -> "torch.Tensor":
    """Return the values of bitsandbytes' `dequantize_4bit`, computed some rows at a time if there is a buffer."""
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise

    state = weight.quant_state
    out_features, in_features = state.shape
    # Without a buffer, or if blocks extend over the end of a row, dequantize everything at once.
    if buffer is None or buffer.dtype != state.dtype or in_features % state.blocksize:
        dense: torch.Tensor = dequantize_4bit(weight.data, state)
        return dense.to(dtype)
    # Double quantization stores the scales of blocks in 8 bits.
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    # The beginning of the buffer becomes the weight (out, in).
    values = buffer[: out_features * in_features].view(out_features, in_features)
    # Two weights are packed into a byte, and each row has in_features / blocksize scales.
    packed, scales = weight.data.view(out_features, -1), scales.view(out_features, -1)
    rows = max(1, _WEIGHTS_PER_CHUNK["4bit"] // in_features)
    for begin in range(0, out_features, rows):
        rows_slice = slice(begin, begin + rows)
        part = values[rows_slice]
        # Each row is a whole number of blocks, so a chunk of rows has its own quantization state.
        chunk_state = type(state)(
            absmax=scales[rows_slice].flatten(),
            shape=part.shape,
            dtype=state.dtype,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            code=state.code,
        )
        part.copy_(dequantize_4bit(packed[rows_slice].reshape(-1, 1), chunk_state))
    return values.to(dtype)


def _dequantize_8bit(
    weight: "torch.Tensor", scales: "torch.Tensor", buffer: "torch.Tensor | None", dtype: "torch.dtype | None"
) -> "torch.Tensor":
    """Return the values of `int8_vectorwise_dequant`, some rows at a time: a third of the time, no fp32 copy."""
    import torch
    from bitsandbytes.functional import int8_vectorwise_dequant

    dtype = dtype or torch.float32
    if buffer is None or buffer.dtype != dtype:
        values = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    else:
        values = buffer[: weight.numel()].view(weight.shape)
    # Each row has one scale, so rows can be converted separately, without an fp32 copy of the whole weight.
    chunk = _WEIGHTS_PER_CHUNK["8bit"] if weight.device.type == "cpu" else _GPU_WEIGHTS_PER_CHUNK
    rows = max(1, chunk // weight.shape[1])
    for begin in range(0, weight.shape[0], rows):
        rows_slice = slice(begin, begin + rows)
        values[rows_slice].copy_(int8_vectorwise_dequant(weight[rows_slice], scales[rows_slice]))
    return values
