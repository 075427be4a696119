"""The frozen weights of quantised linear layers on a CPU: values held beside them, and what bitsandbytes does there."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_chat.config.limits import WEIGHT_CACHE_LIMIT_BYTES
from lora_chat.models.quantization.dequantize import CACHED_WEIGHT_ATTRIBUTE, get_dense_weight, is_int8_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

_REPACK_FLAG = "support_avx512bf16_for_cpu"
_cache_limit_bytes = WEIGHT_CACHE_LIMIT_BYTES


def cache_dense_weights(model: "torch.nn.Module") -> bool:
    """Dequantise layers once instead of at every product, if that takes little memory; whether it was done.

    The values and results are those of bitsandbytes, whose CPU path makes the dense weight anew each time.
    """
    layers: list[Any] = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    if not _fits_cache(layers, model.dtype):  # type: ignore[arg-type]
        return False
    for layer in layers:
        dense = get_dense_weight(layer)
        if dense.dtype == layer.compute_dtype:
            setattr(layer, CACHED_WEIGHT_ATTRIBUTE, dense)
            layer.forward = _make_forward(layer, dense)
    return bool(layers)


def disable_weight_cache() -> None:
    """Treat even a small base as a large one, in this process."""
    global _cache_limit_bytes
    _cache_limit_bytes = 0


def copy_mapped_weights(model: "torch.nn.Module") -> None:
    """Copy what was not quantised, for it keeps the whole file of 16-bit weights mapped, and counted as memory."""
    for weight in [*model.parameters(), *model.buffers()]:
        if weight.dtype.is_floating_point and weight.device.type == "cpu":
            weight.data = weight.data.clone()


@contextmanager
def cached_int8_weights(model: "torch.nn.Module") -> "Iterator[None]":
    """The same for LLM.int8 on a CPU, until the block ends: only in training are its products dense.

    The layers keep their forward, which rounds activations too outside of training.
    """
    dtype: torch.dtype = model.dtype  # type: ignore[assignment]
    layers: list[Any] = [m for m in model.modules() if is_int8_linear(m) and m.weight.device.type == "cpu"]
    layers = layers if _fits_cache(layers, dtype) else []
    for layer in layers:
        setattr(layer, CACHED_WEIGHT_ATTRIBUTE, get_dense_weight(layer, dtype))
    try:
        yield
    finally:
        for layer in layers:
            delattr(layer, CACHED_WEIGHT_ATTRIBUTE)


def _fits_cache(layers: "Sequence[Any]", dtype: "torch.dtype") -> bool:
    return bool(sum(m.in_features * m.out_features * dtype.itemsize for m in layers) <= _cache_limit_bytes)


def concatenate_cached_weights(layers: "Sequence[Any]") -> "torch.Tensor | None":
    """The dense weights of layers over the same input below each other, (sum of out, in); None if they are not held.

    The layers' own become slices of it: they compute as before and no value is in memory twice.
    """
    import torch

    for layer in layers:
        if CACHED_WEIGHT_ATTRIBUTE not in layer.__dict__ and type(layer) is not torch.nn.Linear:
            return None
    if len(layers) == 1:
        return get_dense_weight(layers[0])  # type: ignore[no-any-return]
    stacked = torch.cat([get_dense_weight(layer) for layer in layers])
    begin = 0
    for layer in layers:
        part = stacked[begin : begin + layer.out_features]
        begin += layer.out_features
        if CACHED_WEIGHT_ATTRIBUTE in layer.__dict__:
            setattr(layer, CACHED_WEIGHT_ATTRIBUTE, part)
            if "forward" in layer.__dict__:
                layer.forward = _make_forward(layer, part)
        else:
            layer.weight.data = part
    return stacked


def _make_forward(layer: Any, dense: "torch.Tensor") -> "Callable[[torch.Tensor], torch.Tensor]":
    from torch.nn.functional import linear

    def forward(x: "torch.Tensor") -> "torch.Tensor":
        bias = None if layer.bias is None else layer.bias.to(dense.dtype)
        return linear(x.to(dense.dtype), dense, bias).to(x.dtype)

    return forward


def disable_weight_repacking(model: "torch.nn.Module") -> None:
    """Keep bitsandbytes from repacking 4-bit weights for CPU inference.

    `Linear4bit.forward` repacks at the first evaluation on AVX512-BF16 machines. From then on the weights
    give slightly other results, `dequantize_4bit` misreads them, and no gradient passes through the layer
    (`matmul_4bit` takes an inference kernel), so training after an evaluation would go wrong in silence.
    """
    for module in model.modules():
        if hasattr(module, _REPACK_FLAG):
            setattr(module, _REPACK_FLAG, False)
