"""The dense values that a frozen linear layer computes with, whatever it is stored as."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

CACHED_WEIGHT_ATTRIBUTE = "dense_weight"
"""Where a layer keeps its values, if it does."""
_BUFFER_ATTRIBUTE = "dense_room"
_WEIGHTS_PER_CHUNK = {"4bit": 2**19, "8bit": 2**18}
"""Weights whose values a processor's cache holds; those of 8 bits come in fp32."""


def get_dense_weight(layer: "torch.nn.Module", dtype: "torch.dtype | None" = None) -> Any:
    """The dense weight (out, in) that a linear layer computes with; in `dtype` if given."""
    return _dequantize(layer, dtype, None)


def get_buffered_dense_weight(layer: "torch.nn.Module", dtype: "torch.dtype | None" = None) -> Any:
    """The same for one product: where layers share a room, it is gone when the next is made."""
    return _dequantize(layer, dtype, layer.__dict__.get(_BUFFER_ATTRIBUTE))


def assign_shared_buffer(layers: "Sequence[Any]", dtype: "torch.dtype") -> "torch.Tensor":
    """Have `get_buffered_dense_weight` make the values of these layers in one place, which is returned.

    Blocks that come and go instead leave holes, since the C library cannot put one where one of the same size was; and
    where what is freed goes back at once, a product waits for the kernel to map and clear it.
    """
    import torch

    buffer = torch.empty(max((m.in_features * m.out_features for m in layers), default=0), dtype=dtype)
    for layer in layers:
        setattr(layer, _BUFFER_ATTRIBUTE, buffer)
    return buffer


@contextmanager
def shared_buffer(model: "torch.nn.Module") -> "Iterator[int]":
    """That for all layers whose values are made at every call and have no room yet, on a CPU, until the block ends;
    yields its bytes.
    """
    dtype: Any = model.dtype
    layers = [m for m in model.modules() if is_dequantized_on_the_fly(m) and _BUFFER_ATTRIBUTE not in m.__dict__]
    buffer = assign_shared_buffer(layers, dtype)
    try:
        yield buffer.nbytes
    finally:
        for layer in layers:
            delattr(layer, _BUFFER_ATTRIBUTE)


def is_int8_linear(layer: Any) -> bool:
    """Whether it is a base layer in LLM.int8; PEFT's layer around one has the same name."""
    return type(layer).__name__ == "Linear8bitLt" and not hasattr(layer, "base_layer")


def is_dequantized_on_the_fly(layer: Any) -> bool:
    """Whether its values are made at every call, on a CPU."""
    if hasattr(layer, "base_layer"):  # PEFT's around one
        return False
    quantised = is_int8_linear(layer) or getattr(getattr(layer, "weight", None), "quant_state", None) is not None
    return quantised and layer.weight.device.type == "cpu" and CACHED_WEIGHT_ATTRIBUTE not in layer.__dict__


def _dequantize(layer: Any, dtype: "torch.dtype | None", buffer: "torch.Tensor | None") -> Any:
    cached = layer.__dict__.get(CACHED_WEIGHT_ATTRIBUTE)
    if cached is not None:
        return cached.to(dtype)
    weight: Any = layer.weight
    if getattr(weight, "quant_state", None) is not None:
        return _dequantize_4bit(weight, buffer, dtype)
    scales = _int8_scales(layer)
    if scales is None:
        return weight.detach().to(dtype)
    from bitsandbytes.functional import int8_vectorwise_dequant

    if weight.device.type != "cpu":
        return int8_vectorwise_dequant(weight.data, scales).to(dtype)
    return _dequantize_8bit(weight.data, scales, buffer, dtype)


def _int8_scales(layer: Any) -> Any:
    scales = getattr(layer.weight, "SCB", None)
    if scales is None:  # moved there by the first forward
        scales = getattr(getattr(layer, "state", None), "SCB", None)
    return scales


def _dequantize_4bit(weight: Any, buffer: "torch.Tensor | None", dtype: "torch.dtype | None") -> "torch.Tensor":
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise

    state = weight.quant_state
    out_features, in_features = state.shape
    if buffer is None or buffer.dtype != state.dtype or in_features % state.blocksize:
        whole: torch.Tensor = dequantize_4bit(weight.data, state)
        return whole.to(dtype)
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    values = buffer[: out_features * in_features].view(out_features, in_features)
    packed, rows = weight.data.view(out_features, -1), max(1, _WEIGHTS_PER_CHUNK["4bit"] // in_features)
    scales = scales.view(out_features, -1)
    for begin in range(0, out_features, rows):
        rows_slice = slice(begin, begin + rows)
        part = values[rows_slice]
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
    """`int8_vectorwise_dequant`'s values, some rows after the other: a third of the time, no fp32 copy."""
    import torch
    from bitsandbytes.functional import int8_vectorwise_dequant

    dtype = dtype or torch.float32
    if buffer is None or buffer.dtype != dtype:
        values = torch.empty(weight.shape, dtype=dtype)
    else:
        values = buffer[: weight.numel()].view(weight.shape)
    rows = max(1, _WEIGHTS_PER_CHUNK["8bit"] // weight.shape[1])
    for begin in range(0, weight.shape[0], rows):
        rows_slice = slice(begin, begin + rows)
        values[rows_slice].copy_(int8_vectorwise_dequant(weight[rows_slice], scales[rows_slice]))
    return values
