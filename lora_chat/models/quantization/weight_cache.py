"""Cache of the dense weights of quantized linear layers on a CPU, and corrections of bitsandbytes there."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_chat.config.limits import WEIGHT_CACHE_LIMIT_BYTES
from lora_chat.models.quantization.dequantize import (
    CACHED_WEIGHT_ATTRIBUTE,
    get_dense_weight,
    is_int8_linear,
    is_shard,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

_REPACK_FLAG = "support_avx512bf16_for_cpu"
_cache_limit_bytes = WEIGHT_CACHE_LIMIT_BYTES


def cache_dense_weights(model: "torch.nn.Module") -> bool:
    """Cache the dense weights of 4-bit layers if they fit the limit, and return whether they were cached.

    Weights and results are equal to bitsandbytes', whose CPU path dequantizes at every product.
    """
    layers: list[Any] = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    if not _fits_cache(layers, model.dtype):  # type: ignore[arg-type]
        return False
    for layer in layers:
        dense = get_dense_weight(layer)
        if dense.dtype == layer.compute_dtype:
            setattr(layer, CACHED_WEIGHT_ATTRIBUTE, dense)
            layer.forward = make_cached_forward(layer, dense)
    return bool(layers)


def disable_weight_cache() -> None:
    """Set the limit of the cache to 0 in this process, so that small bases behave like large ones."""
    global _cache_limit_bytes
    _cache_limit_bytes = 0


def copy_mapped_weights(model: "torch.nn.Module") -> None:
    """Copy the weights that are not quantized, because they keep the whole 16-bit file mapped and counted as memory."""
    for weight in [*model.parameters(), *model.buffers()]:
        if weight.dtype.is_floating_point and weight.device.type == "cpu":
            weight.data = weight.data.clone()


@contextmanager
def cached_int8_weights(model: "torch.nn.Module") -> "Iterator[None]":
    """Cache the dense weights of LLM.int8 layers on a CPU until the block ends, if they fit the limit.

    The layers keep their forward, because LLM.int8 has dense products only in training; otherwise it rounds
    activations too.
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
    """Return whether the dense weights of layers fit the limit of the cache."""
    return bool(sum(m.in_features * m.out_features * dtype.itemsize for m in layers) <= _cache_limit_bytes)


def concatenate_cached_weights(layers: "Sequence[Any]") -> "torch.Tensor | None":
    """Return the dense weights of layers over a shared input as one tensor (sum of out, in); None if not cached.

    The layers' weights become slices of it, so their results stay equal and no value is in memory twice. On a GPU, None
    for cached weights too: with one product for each layer, results do not depend on how many layers are cached. None
    for weights that are divided among processes, because they are whole only within a forward or backward.
    """
    import torch

    for layer in layers:
        if is_shard(layer.weight):
            return None
        is_cached_on_cpu = CACHED_WEIGHT_ATTRIBUTE in layer.__dict__ and layer.weight.device.type == "cpu"
        if not is_cached_on_cpu and type(layer) is not torch.nn.Linear:
            return None
    if len(layers) == 1:
        return get_dense_weight(layers[0])
    # One tensor (sum of out, in); each layer gets the rows that were its weight.
    stacked = torch.cat([get_dense_weight(layer) for layer in layers])
    begin = 0
    for layer in layers:
        part = stacked[begin : begin + layer.out_features]
        begin += layer.out_features
        if CACHED_WEIGHT_ATTRIBUTE in layer.__dict__:
            # The cached weight is also captured by the replaced forward.
            setattr(layer, CACHED_WEIGHT_ATTRIBUTE, part)
            if "forward" in layer.__dict__:
                layer.forward = make_cached_forward(layer, part)
        else:
            layer.weight.data = part
    return stacked


def are_shards(layers: "Sequence[Any]") -> bool:
    """Return whether layers over a shared input are dense, and their weights are divided among processes."""
    import torch

    return all(type(layer) is torch.nn.Linear and is_shard(layer.weight) for layer in layers)


def make_cached_forward(layer: Any, dense: "torch.Tensor") -> "Callable[[torch.Tensor], torch.Tensor]":
    """Return a forward that multiplies with a cached weight and returns the dtype of its input."""
    from torch.nn.functional import linear

    def forward(x: "torch.Tensor") -> "torch.Tensor":
        bias = None if layer.bias is None else layer.bias.to(dense.dtype)
        return linear(x.to(dense.dtype), dense, bias).to(x.dtype)

    return forward


def disable_weight_repacking(model: "torch.nn.Module") -> None:
    """Keep bitsandbytes from repacking 4-bit weights for CPU inference.

    On AVX512-BF16 machines, `Linear4bit.forward` repacks the weights at the first evaluation. Repacked weights give
    slightly different results, `dequantize_4bit` misreads them, and no gradient passes through the layer because
    `matmul_4bit` uses an inference kernel. Training after an evaluation would then fail without a message.
    """
    for module in model.modules():
        if hasattr(module, _REPACK_FLAG):
            setattr(module, _REPACK_FLAG, False)
