"""The widths of a base, from its config.json alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_chat.errors import RecipeError

_FAMILY_BY_MODEL_TYPE = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "phi": "phi",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
"""`model_type` -> whose decoder layers it has."""
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3_text", "gpt2")
"""Their head shares the embedding's weights where the config does not say."""


@dataclass(frozen=True)
class LinearShape:
    """One linear layer of a decoder layer."""

    name: str
    in_features: int
    out_features: int
    bias: bool

    @property
    def weights(self) -> int:
        """Without the bias."""
        return self.in_features * self.out_features


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on."""

    model_type: str
    """The config's `model_type`."""
    family: str
    """Whose decoder layers it has."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Width inside the MLP."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    """Whether the LM head's weights are the embedding's."""
    has_softcapping: bool
    """Whether logits or scores have soft caps: the head and attention are then the model's own."""
    has_attention_dropout: bool
    """Whether attention drops weights in training."""

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads."""
        return self.num_kv_heads * self.head_dim

    def linear_layers(self) -> tuple[LinearShape, ...]:
        """Those of one decoder layer, by the names that `adapter.target_modules` uses."""
        h, q, k, f = self.hidden_size, self.q_size, self.key, self.intermediate_size
        if self.family == "gpt2":
            parts = [("c_attn", h, 3 * h), ("c_proj", h, h), ("c_fc", h, f), ("c_proj", f, h)]
            return tuple(LinearShape(*part, bias=True) for part in parts)
        if self.family == "phi":
            attention = [("q_proj", h, q), ("k_proj", h, k), ("v_proj", h, k), ("dense", q, h)]
            return tuple(LinearShape(*part, bias=True) for part in [*attention, ("fc1", h, f), ("fc2", f, h)])
        if self.family == "phi3":
            parts = [("qkv_proj", h, q + 2 * k), ("o_proj", q, h), ("gate_up_proj", h, 2 * f), ("down_proj", f, h)]
            return tuple(LinearShape(*part, bias=False) for part in parts)
        biased = self.model_type == "qwen2"
        inputs = [
            LinearShape("q_proj", h, q, biased),
            LinearShape("k_proj", h, k, biased),
            LinearShape("v_proj", h, k, biased),
        ]
        rest = [("o_proj", q, h), ("gate_proj", h, f), ("up_proj", h, f), ("down_proj", f, h)]
        return (*inputs, *(LinearShape(*part, bias=False) for part in rest))

    @property
    def num_linear_weights(self) -> int:
        """What is quantised, in all layers."""
        return self.num_layers * sum(linear.weights for linear in self.linear_layers())

    @property
    def num_embedding_weights(self) -> int:
        """Embedding, positions that are learned, and a head of its own."""
        learned = self.max_positions * self.hidden_size if self.family == "gpt2" else 0
        return (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size + learned

    @property
    def num_norm_and_bias_weights(self) -> int:
        """Norms and biases."""
        h = self.hidden_size
        norms = {"phi": 2 * h, "gpt2": 4 * h, "gemma2": 4 * h, "gemma3_text": 4 * h + 2 * self.head_dim}
        norm = norms.get(self.family, 2 * h + (2 * self.head_dim if self.family == "qwen3" else 0))
        bias = sum(linear.out_features for linear in self.linear_layers() if linear.bias)
        last = 2 * h if self.family in ("gpt2", "phi") else h
        return self.num_layers * (norm + bias) + last + (self.vocab_size if self.family == "phi" else 0)

    @property
    def weights(self) -> int:
        """All frozen weights."""
        return self.num_linear_weights + self.num_embedding_weights + self.num_norm_and_bias_weights


def read_shape(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a config.json means; raises RecipeError for an architecture that is not known here."""
    model_type = str(config.get("model_type", ""))
    if model_type not in _FAMILY_BY_MODEL_TYPE:
        raise RecipeError(
            f"base.name: {name} is of the architecture {model_type or 'that its config does not name'}, whose "
            f"memory cannot "
            f"be planned yet. Known are {', '.join(_FAMILY_BY_MODEL_TYPE)}."
        )

    def number(key: str, default: int | None = None) -> int:
        value = config.get(_GPT2_NAMES.get(key, key) if model_type == "gpt2" else key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise RecipeError(f"base.name: the config of {name} has no whole number as {key}.")
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    tied = config.get("tie_word_embeddings")
    return ModelShape(
        model_type=model_type,
        family=_FAMILY_BY_MODEL_TYPE[model_type],
        num_layers=number("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=number("intermediate_size", 4 * hidden if model_type == "gpt2" else None),
        num_heads=heads,
        num_kv_heads=heads if model_type == "gpt2" else number("num_key_value_heads", heads),
        head_dim=number("head_dim", 256 if model_type.startswith("gemma") else max(1, hidden // heads)),
        vocab_size=number("vocab_size"),
        max_positions=number("max_position_embeddings", 2048),
        tied_embeddings=model_type in _TIED_BY_DEFAULT if tied is None else bool(tied),
        has_softcapping=bool(config.get("final_logit_softcapping") or config.get("attn_logit_softcapping")),
        has_attention_dropout=bool(
            config.get("attn_pdrop", 0.1) if model_type == "gpt2" else config.get("attention_dropout", 0)
        ),
    )
