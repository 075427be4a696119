"""Forwards of linear layers and LoRA layers for steps whose rows belong to several requests and adapters.

A row gets the bits that the model computes for it as the only row. PEFT's own mixed batches round the update of an
adapter before they add it, and visit every module in each step to register hooks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from transformers.pytorch_utils import Conv1D

from lora_chat.inference.continuous.row_products import (
    MAX_ROWS,
    MAX_SPREAD_BYTES,
    ONE_BY_ONE,
    TOGETHER,
    Multiply,
    choose_row_product,
)
from lora_chat.inference.continuous.shared_attention import current_step
from lora_chat.models.named_adapters import is_plain_lora_layer
from lora_chat.models.quantization.dequantize import is_int8_linear

_TRIED_ROWS = (2, 3, 4, 8, 16, 32, MAX_ROWS)
"""Numbers of rows with which a layer with a forward of its own is compared with single rows."""
Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class _Update:
    """The update that an adapter adds to a layer."""

    multiply_a: Multiply
    multiply_b: Multiply
    weight_a: torch.Tensor
    weight_b: torch.Tensor
    scaling: float

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the update (rows, 1, out) in the dtype of the adapter."""
        if len(rows) == 1:
            linear = torch.nn.functional.linear
            return linear(linear(rows, self.weight_a), self.weight_b) * self.scaling
        return self.multiply_b(self.multiply_a(rows, None), None) * self.scaling


@dataclass(frozen=True)
class _Prepared:
    """A product with the weight of a layer."""

    multiply: Multiply
    weight: torch.Tensor
    address: int
    version: int

    def is_current(self, layer: Any) -> bool:
        """Return whether the layer still has this weight, unchanged."""
        weight = layer.weight
        return weight is self.weight and (weight.data_ptr(), weight._version) == (self.address, self.version)


class RowLayers:
    """The layers of a model whose forward was replaced."""

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._prepared: WeakKeyDictionary[torch.nn.Module, _Prepared] = WeakKeyDictionary()
        self._replaced: WeakSet[torch.nn.Module] = WeakSet()
        self._updates: list[tuple[Any, dict[str, _Update]]] = []
        self._spread_bytes = 0
        self._forward_plain = self._make_plain_forward()
        self.slow_layers: set[str] = set()
        """Layers whose rows are multiplied one by one, as in -> out."""

    def install(self, model: torch.nn.Module) -> None:
        """Replace the forwards of layers that are new, and forget weights that were removed or changed."""
        for module in model.modules():
            if module in self._replaced:
                continue
            if is_plain_lora_layer(module):
                module.forward = self._make_lora_forward(module)
            elif not self._exact or not isinstance(module, torch.nn.Linear | Conv1D):
                continue
            elif "forward" in vars(module) or type(module) not in (torch.nn.Linear, Conv1D):
                # A copy of a layer has a copy of this method, bound to the copy.
                if getattr(vars(module).get("forward"), "__func__", None) is not self._forward_plain:
                    module.forward = self._make_own_forward(module)  # type: ignore[method-assign]
            else:
                # A method and not a closure, because PEFT copies whole modules that an adapter replaces.
                module.forward = MethodType(self._forward_plain, module)  # type: ignore[method-assign]
            self._replaced.add(module)
        for layer, updates in self._updates:
            for name in updates.keys() - layer.lora_A.keys():
                del updates[name]
        for module, prepared in list(self._prepared.items()):
            if not prepared.is_current(module):
                del self._prepared[module]

    def _make_lora_forward(self, layer: Any) -> Forward:
        """Return a forward that adds to each row the update of its adapter, with PEFT's arithmetic for one adapter."""
        original = layer.forward
        updates: dict[str, _Update] = {}
        self._updates.append((layer, updates))
        # PEFT adds in the adapter's dtype and rounds the sum; around packed weights it rounds the update first.
        rounds_sum = type(layer).__name__ == "Linear"

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            step = current_step()
            if step is None or step.groups is None:
                result: torch.Tensor = original(x, *args, **kwargs)
                return result
            result = layer.base_layer(x)
            wide = x
            for name, begin, end in step.groups:
                update = updates.get(name)
                if update is None:
                    if name not in layer.lora_A:
                        continue
                    update = updates[name] = self._prepare_update(layer, name)
                if wide.dtype != update.weight_a.dtype:
                    wide = x.to(update.weight_a.dtype)
                change = update(wide[begin:end])
                if not rounds_sum:
                    change = change.to(result.dtype)
                if end - begin == len(x):
                    result = (result + change).to(result.dtype)
                else:
                    result[begin:end] = result[begin:end] + change
            return result

        return forward

    def _prepare_update(self, layer: Any, name: str) -> _Update:
        """Return the update of an adapter."""
        weight_a, weight_b = layer.lora_A[name].weight, layer.lora_B[name].weight
        return _Update(
            self._choose(weight_a, has_bias=False),
            self._choose(weight_b, has_bias=False),
            weight_a,
            weight_b,
            layer.scaling[name],
        )

    def _choose(self, weight: torch.Tensor, *, has_bias: bool) -> Multiply:
        """Return the product of rows with a weight (out, in)."""
        if not self._exact:
            return TOGETHER.prepare(weight)
        out_features, in_features = weight.shape
        extra = 2 * weight.nbytes
        may_copy = self._spread_bytes + extra <= MAX_SPREAD_BYTES
        product = choose_row_product(in_features, out_features, weight.dtype, has_bias=has_bias, may_copy=may_copy)
        if product.memory_factor:
            self._spread_bytes += extra
        if product is ONE_BY_ONE:
            self.slow_layers.add(f"{in_features} -> {out_features}")
        return product.prepare(weight)

    def _make_plain_forward(self) -> Forward:
        """Return a method of dense linear layers that gives rows the bits of single rows."""

        def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
            if current_step() is None or x.numel() == x.shape[-1]:
                result: torch.Tensor = type(layer).forward(layer, x)
                return result
            prepared = self._prepared.get(layer)
            if prepared is None:
                prepared = self._prepared[layer] = self._prepare(layer)
            return prepared.multiply(x.reshape(-1, 1, x.shape[-1]), layer.bias).reshape(*x.shape[:-1], -1)

        return forward

    def _prepare(self, layer: Any) -> _Prepared:
        """Return the product with a layer's weight."""
        weight = layer.weight
        if isinstance(layer, Conv1D):  # (in, out)
            multiply = self._try_own_forward(MethodType(Conv1D.forward, layer), weight[:, 0])
        else:
            multiply = self._choose(weight, has_bias=layer.bias is not None)
        return _Prepared(multiply, weight, weight.data_ptr(), weight._version)

    def _make_own_forward(self, layer: Any) -> Forward:
        """Return a forward of a layer with a forward of its own, such as one of packed weights."""
        original: Forward = layer.forward
        multiply: Multiply | None = None

        def forward(x: torch.Tensor) -> torch.Tensor:
            nonlocal multiply
            if current_step() is None or x.numel() == x.shape[-1]:
                return original(x)
            rows = x.reshape(-1, 1, x.shape[-1])
            if multiply is None:
                multiply = self._try_own_forward(original, rows[0, 0], is_mixing=is_int8_linear(layer))
            return multiply(rows, None).reshape(*x.shape[:-1], -1)

        return forward

    def _try_own_forward(self, original: Forward, example: torch.Tensor, *, is_mixing: bool = False) -> Multiply:
        """Return a forward with all rows together if it gives the same bits as one by one.

        LLM.int8 chooses columns by the values of all rows, so that no sample shows whether rows depend on each other.
        """
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(max(_TRIED_ROWS), 1, len(example), generator=generator).to(example)
        single = torch.cat([original(row) for row in torch.split(sample, 1)])
        if not is_mixing and all(torch.equal(original(sample[:count]), single[:count]) for count in _TRIED_ROWS):
            return lambda rows, bias: original(rows)
        self.slow_layers.add(f"{len(example)} -> {single.shape[-1]}")
        return lambda rows, bias: torch.cat([original(row) for row in torch.split(rows, 1)])
