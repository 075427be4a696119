"""The dense values that a frozen linear layer computes with, whatever it is stored as."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

HELD = "dense_weight"
"""Where a layer keeps its values, if it does."""
_ROOM = "dense_room"
_TOGETHER = {"4bit": 2**19, "8bit": 2**18}
"""Weights whose values a processor's cache holds; those of 8 bits come in fp32."""


def frozen_weight(layer: "torch.nn.Module", dtype: "torch.dtype | None" = None) -> Any:
    """The dense weight (out, in) that a linear layer computes with; in `dtype` if given."""
    return _find_values(layer, dtype, None)


def passing_weight(layer: "torch.nn.Module", dtype: "torch.dtype | None" = None) -> Any:
    """The same for one product: where layers share a room, it is gone when the next is made."""
    return _find_values(layer, dtype, layer.__dict__.get(_ROOM))


def share_room(layers: "Sequence[Any]", dtype: "torch.dtype") -> "torch.Tensor":
    """Have `passing_weight` make the values of these layers in one place, which is returned.

    Blocks that come and go instead leave holes, since the C library cannot put one where one of the same size was; and
    where what is freed goes back at once, a product waits for the kernel to map and clear it.
    """
    import torch

    room = torch.empty(max((m.in_features * m.out_features for m in layers), default=0), dtype=dtype)
    for layer in layers:
        setattr(layer, _ROOM, room)
    return room


@contextmanager
def shared_room(model: "torch.nn.Module") -> "Iterator[int]":
    """That for all layers whose values are made at every call and have no room yet, on a CPU, until the block ends;
    yields its bytes.
    """
    dtype: Any = model.dtype
    layers = [m for m in model.modules() if is_made_anew(m) and _ROOM not in m.__dict__]
    room = share_room(layers, dtype)
    try:
        yield room.nbytes
    finally:
        for layer in layers:
            delattr(layer, _ROOM)


def is_int8(layer: Any) -> bool:
    """Whether it is a base layer in LLM.int8; PEFT's layer around one has the same name."""
    return type(layer).__name__ == "Linear8bitLt" and not hasattr(layer, "base_layer")


def is_made_anew(layer: Any) -> bool:
    """Whether its values are made at every call, on a CPU."""
    if hasattr(layer, "base_layer"):  # PEFT's around one
        return False
    quantised = is_int8(layer) or getattr(getattr(layer, "weight", None), "quant_state", None) is not None
    return quantised and layer.weight.device.type == "cpu" and HELD not in layer.__dict__


def _find_values(layer: Any, dtype: "torch.dtype | None", room: "torch.Tensor | None") -> Any:
    held = layer.__dict__.get(HELD)
    if held is not None:
        return held.to(dtype)
    weight: Any = layer.weight
    if getattr(weight, "quant_state", None) is not None:
        return _values_of_4bit(weight, room, dtype)
    scales = _int8_scales(layer)
    if scales is None:
        return weight.detach().to(dtype)
    from bitsandbytes.functional import int8_vectorwise_dequant

    if weight.device.type != "cpu":
        return int8_vectorwise_dequant(weight.data, scales).to(dtype)
    return _values_of_8bit(weight.data, scales, room, dtype)


def _int8_scales(layer: Any) -> Any:
    scales = getattr(layer.weight, "SCB", None)
    if scales is None:  # moved there by the first forward
        scales = getattr(getattr(layer, "state", None), "SCB", None)
    return scales


def _values_of_4bit(weight: Any, room: "torch.Tensor | None", dtype: "torch.dtype | None") -> "torch.Tensor":
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise

    state = weight.quant_state
    outside, inside = state.shape
    if room is None or room.dtype != state.dtype or inside % state.blocksize:
        whole: torch.Tensor = dequantize_4bit(weight.data, state)
        return whole.to(dtype)
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    values = room[: outside * inside].view(outside, inside)
    packed, rows = weight.data.view(outside, -1), max(1, _TOGETHER["4bit"] // inside)
    scales = scales.view(outside, -1)
    for begin in range(0, outside, rows):
        some = slice(begin, begin + rows)
        part = values[some]
        few = type(state)(
            absmax=scales[some].flatten(),
            shape=part.shape,
            dtype=state.dtype,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            code=state.code,
        )
        part.copy_(dequantize_4bit(packed[some].reshape(-1, 1), few))
    return values.to(dtype)


def _values_of_8bit(
    weight: "torch.Tensor", scales: "torch.Tensor", room: "torch.Tensor | None", dtype: "torch.dtype | None"
) -> "torch.Tensor":
    """`int8_vectorwise_dequant`'s values, some rows after the other: a third of the time, no fp32 copy."""
    import torch
    from bitsandbytes.functional import int8_vectorwise_dequant

    dtype = dtype or torch.float32
    if room is None or room.dtype != dtype:
        values = torch.empty(weight.shape, dtype=dtype)
    else:
        values = room[: weight.numel()].view(weight.shape)
    rows = max(1, _TOGETHER["8bit"] // weight.shape[1])
    for begin in range(0, weight.shape[0], rows):
        some = slice(begin, begin + rows)
        values[some].copy_(int8_vectorwise_dequant(weight[some], scales[some]))
    return values
