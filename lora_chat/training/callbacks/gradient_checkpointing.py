"""Callback that recomputes the activations of some decoder layers only, which trades memory for speed."""

from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    import torch


class PartialGradientCheckpointing(TrainerCallback):
    """Leave gradient checkpointing on in the first `layers` decoder layers, after Trainer has enabled it in all."""

    def __init__(self, layers: int) -> None:
        self._layers = layers

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: "torch.nn.Module | None" = None,
        **kwargs: object,
    ) -> None:
        """Disable gradient checkpointing in the other layers."""
        assert model is not None
        decoder_layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for number, layer in enumerate(decoder_layers):
            layer.gradient_checkpointing = number < self._layers
