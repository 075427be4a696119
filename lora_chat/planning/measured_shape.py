"""Shape of a model of any architecture, measured on the model without weights instead of computed from its config."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lora_chat.config.stored_quantization import QuantizationMode
from lora_chat.models.shape import LinearShape, ModelShape
from lora_chat.planning.layer_memory import LayerVariant, MicroBatch, PassMemory

PassKind = Literal["train", "checkpointed", "read"]
"""A pass that saves activations, one whose layers are checkpointed, and one without gradients."""


MemorySource = Literal["formulas", "dry run", "upper bound"]
"""Formulas of an architecture; a dry run of the model without weights; a bound, if the model cannot run so."""


class PassSource(Protocol):
    """A source of the bytes of decoder layers."""

    @property
    def is_bound(self) -> bool:
        """Return whether the bytes are an upper bound, because the model cannot run without weights."""

    def find(self, kind: PassKind, mode: QuantizationMode, batch: MicroBatch) -> tuple[PassMemory, PassMemory]:
        """Return the memory of the forward and of the backward pass; a layer's bytes are the mean of all layers."""


@dataclass(frozen=True)
class MeasuredShape(ModelShape):
    """The shape of a model whose layers may differ from each other."""

    linears: tuple[LinearShape, ...] = ()
    """Every linear layer that bitsandbytes can quantize."""
    embedding_weights: int = 0
    """Number of weights of embeddings and of an untied head."""
    other_weights: int = 0
    """Number of all other weights, such as norms, experts and convolutions, which are never quantized."""
    largest_weight: int = 0
    """Number of weights of the largest matrix except embeddings and head."""
    passes: PassSource = field(kw_only=True, compare=False, repr=False)

    def linear_layers(self) -> tuple[LinearShape, ...]:
        """Return the linear layers of all decoder layers."""
        return self.linears

    @property
    def num_linear_weights(self) -> int:
        """Return the number of weights in linear layers, which are quantized."""
        return sum(linear.weights for linear in self.linears)

    @property
    def num_linear_outputs(self) -> int:
        """Return the number of outputs of all linear layers."""
        return sum(linear.out_features for linear in self.linears)

    @property
    def num_linears(self) -> int:
        """Return the number of linear layers."""
        return len(self.linears)

    @property
    def max_linear_weights(self) -> int:
        """Return the number of weights of the largest matrix."""
        return self.largest_weight

    @property
    def num_concatenated_weights(self) -> int:
        """Return zero, because the fast path does not fuse the decoder layers of these architectures."""
        return 0

    @property
    def num_embedding_weights(self) -> int:
        """Return the number of weights of embeddings and of an untied head."""
        return self.embedding_weights

    @property
    def num_norm_and_bias_weights(self) -> int:
        """Return the number of all weights that are neither in linear layers nor in embeddings."""
        return self.other_weights

    def count_adapter_parameters(self, rank: int, target_modules: Collection[str]) -> int:
        """Return about the number of trained weights; a plan has the exact number from PEFT."""
        names = [linear for linear in self.linears if not target_modules or linear.name in target_modules]
        return rank * sum(linear.in_features + linear.out_features for linear in names)

    def layer_passes(
        self, variant: LayerVariant, mode: QuantizationMode, batch: MicroBatch, *, checkpointed: bool
    ) -> tuple[PassMemory, PassMemory]:
        """Return the memory of the forward and of the backward pass, as `estimate_layer_passes` does."""
        kind: PassKind = "read" if variant == "read" else "checkpointed" if checkpointed else "train"
        return self.passes.find(kind, mode, batch)


@dataclass(frozen=True)
class BoundPasses:
    """An upper bound of the bytes, for a model that cannot run without weights."""

    features: int
    """Sum of the inputs and outputs of all matrices that one token passes, in one layer on average."""
    hidden_size: int
    num_heads: int
    largest_weight: int
    is_bound: bool = True

    def find(self, kind: PassKind, mode: QuantizationMode, batch: MicroBatch) -> tuple[PassMemory, PassMemory]:
        """Return passes in which every input and output of a matrix is kept in fp32, and attention is not fused."""
        values = batch.tokens * (self.features + 12 * self.hidden_size)
        states = 2 * batch.tokens * self.hidden_size
        scores = 10 * batch.tokens * batch.longest * self.num_heads
        layer = {"train": 4 * values + scores, "checkpointed": states, "read": states}[kind]
        peak = 4 * values + scores + (0 if mode == "none" else 2 * self.largest_weight)
        forward = PassMemory(layer, 4 * states, peak)
        return forward, PassMemory(layer, 4 * states, 2 * peak) if kind != "read" else PassMemory(0, 0, 0)


def find_memory_source(shape: ModelShape) -> MemorySource:
    """Return how the bytes of a shape's decoder layers are known."""
    if not isinstance(shape, MeasuredShape):
        return "formulas"
    return "upper bound" if shape.passes.is_bound else "dry run"
