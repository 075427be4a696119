"""Cache of the dense weights of quantized decoder layers on a GPU, during training only.

Forward and backward then need no dequantization. After training the copies are dropped, because replies are generated
faster from the quantized weights, which are fewer bytes to read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_chat.models.quantization.dequantize import (
    CACHED_WEIGHT_ATTRIBUTE,
    get_dense_weight,
    is_int8_linear,
    layer_kind,
)
from lora_chat.models.quantization.weight_cache import make_cached_forward
from lora_chat.system.memory_limit import is_out_of_memory

_CHECKED_ROWS = 4
"""Rows of the product that is compared with bitsandbytes'; for few rows, its own kernel reads the quantized weights."""
_TOLERANCE = 0.02
"""Largest relative difference of the products; rounding of outputs to bf16 and of inputs to int8 causes less."""


def fill_weight_cache(model: torch.nn.Module, num_layers: int) -> str:
    """Cache the dense weights of the first `num_layers` decoder layers, if they are quantized and on a GPU.

    The values are bitsandbytes' own. Return an empty string, or the reason why nothing is cached: the weights do not
    fit into memory, or a product with one of them differs from bitsandbytes' product.
    """
    decoder_layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    dtype: Any = model.dtype
    try:
        for decoder_layer in decoder_layers[:num_layers]:
            _cache_together([module for module in decoder_layer.modules() if _is_quantized_on_gpu(module)], dtype)
        reason = find_wrong_product(model, _is_cached)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = "they do not fit into the GPU's memory"
    if reason:
        drop_weight_cache(model)
    return reason


def drop_weight_cache(model: torch.nn.Module) -> None:
    """Free the cached weights of layers on a GPU."""
    for layer in model.modules():
        if _is_cached(layer):
            delattr(layer, CACHED_WEIGHT_ATTRIBUTE)


@contextmanager
def cached_forwards(model: torch.nn.Module) -> Iterator[int]:
    """Let 4-bit layers multiply with their cached weights until the block ends, and yield their number.

    8-bit layers keep their forward, which rounds activations too; only fused layers use their cached weights.
    """
    layers: list[Any] = [m for m in model.modules() if _is_cached(m) and not is_int8_linear(m)]
    for layer in layers:
        layer.forward = make_cached_forward(layer, getattr(layer, CACHED_WEIGHT_ATTRIBUTE))
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward  # restores the method of the class


def _cache_together(layers: Sequence[Any], dtype: torch.dtype) -> None:
    """Write the dense weights of a decoder layer's linear layers into one new tensor, which is one block of memory."""
    if not layers:
        return
    sizes = [layer.in_features * layer.out_features for layer in layers]
    values = torch.empty(sum(sizes), dtype=dtype, device=layers[0].weight.device)
    for layer, part in zip(layers, torch.split(values, sizes), strict=True):
        dense = part.view(layer.out_features, layer.in_features)
        dense.copy_(get_dense_weight(layer, dtype))
        setattr(layer, CACHED_WEIGHT_ATTRIBUTE, dense)


def find_wrong_product(model: torch.nn.Module, is_checked: Callable[[Any], bool]) -> str:
    """Compare a product with the dense weight with bitsandbytes' product, and describe the first one that differs.

    The first layer of each kind is compared, of those for which `is_checked` holds.
    """
    names, differences = [], []
    kinds = set()
    for name, layer in model.named_modules():
        kind = layer_kind(name)
        if kind not in kinds and is_checked(layer):
            kinds.add(kind)
            names.append(name)
            differences.append(_product_difference(layer, model.dtype))  # type: ignore[arg-type]
    # One wait for the device. A NaN is not within the tolerance.
    values = torch.stack(differences).tolist() if differences else []
    for name, difference in zip(names, values, strict=True):
        if not difference <= _TOLERANCE:
            return f"a product of {name} differs from bitsandbytes' by {difference:.1%}"
    return ""


@torch.no_grad()
def _product_difference(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return the relative difference between the product with the dense weight and bitsandbytes' product."""
    dense = get_dense_weight(layer, dtype)
    # Values in [-1, 1] that do not depend on the random state, which training must not find changed.
    angles = torch.arange(_CHECKED_ROWS * layer.in_features, dtype=torch.float32, device=dense.device)
    x = torch.sin(angles * 12.9898).view(_CHECKED_ROWS, -1).to(dense.dtype)
    expected = type(layer).forward(layer, x).float()
    distance = (make_cached_forward(layer, dense)(x).float() - expected).norm()
    # A weight of zeros has a distance of zero.
    relative: torch.Tensor = distance / expected.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return relative


def _is_quantized_on_gpu(layer: Any) -> bool:
    """Return whether a layer is a quantized base layer on a GPU."""
    if hasattr(layer, "base_layer"):  # PEFT's layer around a base layer
        return False
    weight = getattr(layer, "weight", None)
    is_quantized = is_int8_linear(layer) or getattr(weight, "quant_state", None) is not None
    return is_quantized and weight is not None and weight.device.type != "cpu"


def _is_cached(layer: Any) -> bool:
    """Return whether a layer on a GPU has a cached weight."""
    return CACHED_WEIGHT_ATTRIBUTE in vars(layer) and _is_quantized_on_gpu(layer)
