"""Callback that keeps the second half of each layer's rank, the negative start of PiSSA or OLoRA, as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.models.adapter_initialization import iterate_lora_layers

if TYPE_CHECKING:
    from peft import PeftModel


class FrozenStart(TrainerCallback):
    """Restore of the start after each step, because weight decay would shrink it; its gradient is zero."""

    def __init__(self, model: "PeftModel") -> None:
        self._parameters = [
            (parameter, dim)
            for _, layer in iterate_lora_layers(model)
            for parameter, dim in ((layer.lora_A["default"].weight, 0), (layer.lora_B["default"].weight, 1))
        ]
        """Each parameter and the dimension of its rank."""
        self._values: list[torch.Tensor] = []

    @contextmanager
    def without_gradient(self) -> Iterator[None]:
        """Make the gradient of the start zero until the block ends, so that it does not count in the norm either."""
        handles = [
            parameter.register_hook(lambda gradient, dim=dim: _clear_start(gradient, dim))
            for parameter, dim in self._parameters
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Copy the start, after a checkpoint was loaded."""
        self._values = [_select_start(parameter.detach(), dim).clone() for parameter, dim in self._parameters]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Restore the start before anything is saved or measured."""
        with torch.no_grad():
            for (parameter, dim), value in zip(self._parameters, self._values, strict=True):
                _select_start(parameter, dim).copy_(value)


def _select_start(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Return a view of the second half of a dimension."""
    half = tensor.shape[dim] // 2
    return tensor.narrow(dim, half, half)


def _clear_start(gradient: torch.Tensor, dim: int) -> torch.Tensor:
    """Return a gradient with zeros in the second half of a dimension."""
    cleared = gradient.clone()
    _select_start(cleared, dim).zero_()
    return cleared
