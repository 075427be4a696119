"""Memory of the modules and token rows that are trained beside LoRA, from shapes."""

from dataclasses import dataclass

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.models.shape import ModelShape

_EMBEDDING_NAMES = {"embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings"}
_HEAD_NAMES = {"lm_head", "embed_out", "output"}
_FP32_BYTES = 4


@dataclass(frozen=True)
class TrainedParts:
    """The matrices and rows that are trained beside LoRA; norms are too small to matter but for their number."""

    matrix_weights: int = 0
    """Number of weights of the embedding, and of a head of the same size."""
    has_whole_embedding: bool = False
    has_whole_head: bool = False
    is_tied: bool = False
    """Whether embedding and head are one matrix."""
    row_weights: int = 0
    """Number of trained weights in rows of single tokens, in embedding and head together."""
    norm_weights: int = 0

    @property
    def count(self) -> int:
        """Return the number of weights that are trained beside LoRA."""
        num_matrices = min(self.has_whole_embedding + self.has_whole_head, 1 if self.is_tied else 2)
        return num_matrices * self.matrix_weights + self.row_weights + self.norm_weights

    @property
    def trains_head(self) -> bool:
        """Return whether the LM head has trained weights, so that the model's own head computes the loss."""
        return self.has_whole_head or bool(self.row_weights)

    @property
    def head_gradient_bytes(self) -> int:
        """Return the bytes of the head's gradient, which exists from the head's backward to the optimizer's step."""
        return _FP32_BYTES * self.matrix_weights if self.has_whole_head else 0

    def head_bytes(self, bytes_per_value: int) -> int:
        """Return the bytes of copies of the head: in 16 bits for autocast, or with the trained rows."""
        return bytes_per_value * self.matrix_weights if self.trains_head else 0

    def embedding_bytes(self, bytes_per_value: int) -> int:
        """Return the bytes of temporary tensors in the embedding's backward.

        They are the gradient of the whole matrix before it is added to an earlier one, or before the rows are taken out
        of it, which copies it.
        """
        if self.has_whole_embedding:
            return _FP32_BYTES * self.matrix_weights
        return 2 * bytes_per_value * self.matrix_weights if self.row_weights else 0


def measure_trained_parts(adapter: AdapterSection, shape: ModelShape) -> TrainedParts:
    """Return the parts that an adapter trains beside LoRA on a base of this shape."""
    names = {name.split(".")[-1] for name in adapter.modules_to_save or ()}
    embedding, head = bool(names & _EMBEDDING_NAMES), bool(names & _HEAD_NAMES)
    if shape.tied_embeddings:
        embedding = head = embedding or head
    num_rows = len({*(adapter.trainable_tokens or ()), *(adapter.new_tokens or ())})
    num_row_matrices = (not embedding) + (not head and not shape.tied_embeddings)
    return TrainedParts(
        matrix_weights=shape.vocab_size * shape.hidden_size,
        has_whole_embedding=embedding,
        has_whole_head=head,
        is_tied=shape.tied_embeddings,
        row_weights=num_row_matrices * num_rows * shape.hidden_size,
        norm_weights=sum(_count_norm_weights(name, shape) for name in names - _EMBEDDING_NAMES - _HEAD_NAMES),
    )


def _count_norm_weights(name: str, shape: ModelShape) -> int:
    """Return the number of weights of norms by their last name; one outside of the decoder layers exists once."""
    is_final = name in ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
    width = shape.head_dim if name in ("q_norm", "k_norm") else shape.hidden_size
    return (1 if is_final else shape.num_layers) * width * (2 if shape.architecture.has_layer_norm else 1)
