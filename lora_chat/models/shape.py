"""Sizes of a base and its numbers of weights, from its config.json only."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lora_chat.errors import RecipeError
from lora_chat.models.architectures import (
    ARCHITECTURES,
    CONCATENATED_PROJECTIONS,
    SOFTCAPPING_FIELDS,
    ArchitectureSpec,
    LinearSize,
    find_architecture,
)


@dataclass(frozen=True)
class LinearShape:
    """A linear layer of a decoder layer."""

    name: str
    in_features: int
    out_features: int
    bias: bool

    @property
    def weights(self) -> int:
        """Return the number of weights without the bias."""
        return self.in_features * self.out_features


@dataclass(frozen=True)
class ModelShape:
    """Sizes and features of a model that its memory and time depend on."""

    architecture: ArchitectureSpec
    layer_family: str
    """Decoder layers whose bytes are in planning/layer_bytes.json."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Size of the MLP's hidden states."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    """Whether the LM head shares the embedding's weights."""
    has_softcapping: bool
    """Whether logits or attention scores have soft caps; the head and attention then stay the model's."""
    has_attention_dropout: bool
    """Whether attention drops weights in training."""

    @property
    def q_size(self) -> int:
        """Return the size of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Return the size of all key heads."""
        return self.num_kv_heads * self.head_dim

    def linear_layers(self) -> tuple[LinearShape, ...]:
        """Return the linear layers of one decoder layer, by the names that `adapter.target_modules` uses."""
        sizes: dict[LinearSize, int] = {
            "hidden": self.hidden_size,
            "query": self.q_size,
            "key": self.kv_size,
            "mlp": self.intermediate_size,
        }
        return tuple(
            LinearShape(spec.name, sizes[spec.inputs], sum(sizes[size] for size in spec.outputs), spec.bias)
            for spec in self.architecture.linear_layers
        )

    @property
    def num_linear_weights(self) -> int:
        """Return the number of weights in linear layers, which are quantized."""
        return self.num_layers * sum(linear.weights for linear in self.linear_layers())

    @property
    def num_linear_outputs(self) -> int:
        """Return the number of outputs of all linear layers."""
        return self.num_layers * sum(linear.out_features for linear in self.linear_layers())

    @property
    def num_linears(self) -> int:
        """Return the number of linear layers in all decoder layers."""
        return self.num_layers * len(self.linear_layers())

    @property
    def max_linear_weights(self) -> int:
        """Return the number of weights of the largest linear layer."""
        return max(linear.weights for linear in self.linear_layers())

    @property
    def num_concatenated_weights(self) -> int:
        """Return the number of weights of the linear layers whose products the fast path computes together."""
        linears = [linear for linear in self.linear_layers() if linear.name in CONCATENATED_PROJECTIONS]
        return self.num_layers * sum(linear.weights for linear in linears)

    def count_adapter_parameters(self, rank: int, target_modules: Collection[str]) -> int:
        """Return the number of trained weights: rank * (in + out) for each linear layer; no targets mean all."""
        linears = [linear for linear in self.linear_layers() if not target_modules or linear.name in target_modules]
        return self.num_layers * rank * sum(linear.in_features + linear.out_features for linear in linears)

    @property
    def num_embedding_weights(self) -> int:
        """Return the number of weights of the embedding, learned positions and an untied head."""
        positions = self.max_positions * self.hidden_size if self.architecture.has_learned_positions else 0
        return (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size + positions

    @property
    def num_norm_and_bias_weights(self) -> int:
        """Return the number of weights of norms and biases."""
        spec = self.architecture
        norms = spec.hidden_size_norms * self.hidden_size + (2 * self.head_dim if spec.has_head_norms else 0)
        biases = sum(linear.out_features for linear in self.linear_layers() if linear.bias)
        final_norm = (2 if spec.has_layer_norm else 1) * self.hidden_size
        return self.num_layers * (norms + biases) + final_norm + (self.vocab_size if spec.has_head_bias else 0)

    @property
    def weights(self) -> int:
        """Return the number of all frozen weights."""
        return self.num_linear_weights + self.num_embedding_weights + self.num_norm_and_bias_weights


def read_shape(config: Mapping[str, object], name: str) -> ModelShape:
    """Return the shape that a config.json describes. Raises RecipeError for an architecture that cannot be planned."""
    model_type = str(config.get("model_type", ""))
    spec = find_architecture(model_type)
    if spec.layer_family is None:
        known = ", ".join(spec.model_type for spec in ARCHITECTURES if spec.layer_family)
        raise RecipeError(
            f"base.name: {name} is of the architecture {model_type or 'that its config does not name'}, whose "
            f"memory cannot be planned yet. Known are {known}."
        )

    def number(field: str, default: int | None = None) -> int:
        value = config.get(spec.config_name(field))
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise RecipeError(f"base.name: the config of {name} has no whole number as {field}.")
        return value

    hidden_size, heads = number("hidden_size"), number("num_attention_heads")
    tied = config.get("tie_word_embeddings")
    dropout_field, default_dropout = spec.attention_dropout
    return ModelShape(
        architecture=spec,
        layer_family=spec.layer_family,
        num_layers=number("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=number("intermediate_size", spec.default_mlp_ratio and spec.default_mlp_ratio * hidden_size),
        num_heads=heads,
        num_kv_heads=number("num_key_value_heads", heads) if spec.has_kv_heads else heads,
        head_dim=number("head_dim", spec.default_head_dim or max(1, hidden_size // heads)),
        vocab_size=number("vocab_size"),
        max_positions=number("max_position_embeddings", 2048),
        tied_embeddings=spec.tied_by_default if tied is None else bool(tied),
        has_softcapping=any(config.get(field) for field in SOFTCAPPING_FIELDS),
        has_attention_dropout=bool(config.get(dropout_field, default_dropout)),
    )


def read_size(config: Mapping[str, object], *names: str, default: int) -> int:
    """Return the first of these fields that is a positive whole number, or the largest of a list with one per layer."""
    for name in names:
        value = config.get(name)
        numbers = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and n > 0]
        if numbers:
            return max(numbers)
    return default


def read_kv_sizes(config: Mapping[str, object]) -> tuple[int, int, int]:
    """Return key heads, head size and number of layers of any architecture, as far as its config has them."""
    heads = read_size(config, "num_attention_heads", "n_head", "num_heads", default=1)
    hidden_size = read_size(config, "hidden_size", "n_embd", "d_model", default=1)
    return (
        read_size(config, "num_key_value_heads", default=heads),
        read_size(config, "head_dim", default=max(1, hidden_size // heads)),
        read_size(config, "num_hidden_layers", "n_layer", "num_layers", default=1),
    )
