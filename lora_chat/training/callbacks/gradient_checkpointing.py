"""Recompute the activations of some decoder layers only: each that keeps them costs memory and saves time."""

from typing import Any

from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer


class PartialGradientCheckpointing(TrainerCallback):
    """Leaves gradient checkpointing on in the first `layers` decoder layers alone, once Trainer has set it in all."""

    def __init__(self, layers: int) -> None:
        self._layers = layers

    def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        decoder_layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for number, layer in enumerate(decoder_layers):
            layer.gradient_checkpointing = number < self._layers
