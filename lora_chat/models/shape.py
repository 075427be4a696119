"""The widths of a base, from its config.json alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_chat.errors import RecipeError

_LAYERS = {
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
_TIED = ("gemma", "gemma2", "gemma3_text", "gpt2")
"""Their head shares the embedding's weights where the config does not say."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer."""

    name: str
    inside: int
    outside: int
    bias: bool

    @property
    def weights(self) -> int:
        """Without the bias."""
        return self.inside * self.outside


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on."""

    architecture: str
    """The config's `model_type`."""
    layers: str
    """Whose decoder layers it has."""
    layer_count: int
    hidden: int
    inner: int
    """Width inside the MLP."""
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    positions: int
    tied: bool
    """Whether the LM head's weights are the embedding's."""
    capped: bool
    """Whether logits or scores have soft caps: the head and attention are then the model's own."""
    dropout: bool
    """Whether attention drops weights in training."""

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        """Width of all key heads."""
        return self.key_heads * self.head_size

    def linears(self) -> tuple[Linear, ...]:
        """Those of one decoder layer, by the names that `adapter.target_modules` uses."""
        h, q, k, f = self.hidden, self.query, self.key, self.inner
        if self.layers == "gpt2":
            parts = [("c_attn", h, 3 * h), ("c_proj", h, h), ("c_fc", h, f), ("c_proj", f, h)]
            return tuple(Linear(*part, bias=True) for part in parts)
        if self.layers == "phi":
            attention = [("q_proj", h, q), ("k_proj", h, k), ("v_proj", h, k), ("dense", q, h)]
            return tuple(Linear(*part, bias=True) for part in [*attention, ("fc1", h, f), ("fc2", f, h)])
        if self.layers == "phi3":
            parts = [("qkv_proj", h, q + 2 * k), ("o_proj", q, h), ("gate_up_proj", h, 2 * f), ("down_proj", f, h)]
            return tuple(Linear(*part, bias=False) for part in parts)
        biased = self.architecture == "qwen2"
        inputs = [Linear("q_proj", h, q, biased), Linear("k_proj", h, k, biased), Linear("v_proj", h, k, biased)]
        rest = [("o_proj", q, h), ("gate_proj", h, f), ("up_proj", h, f), ("down_proj", f, h)]
        return (*inputs, *(Linear(*part, bias=False) for part in rest))

    @property
    def linear_weights(self) -> int:
        """What is quantised, in all layers."""
        return self.layer_count * sum(linear.weights for linear in self.linears())

    @property
    def embedding_weights(self) -> int:
        """Embedding, positions that are learned, and a head of its own."""
        learned = self.positions * self.hidden if self.layers == "gpt2" else 0
        return (1 if self.tied else 2) * self.vocabulary * self.hidden + learned

    @property
    def small_weights(self) -> int:
        """Norms and biases."""
        h = self.hidden
        norms = {"phi": 2 * h, "gpt2": 4 * h, "gemma2": 4 * h, "gemma3_text": 4 * h + 2 * self.head_size}
        norm = norms.get(self.layers, 2 * h + (2 * self.head_size if self.layers == "qwen3" else 0))
        bias = sum(linear.outside for linear in self.linears() if linear.bias)
        last = 2 * h if self.layers in ("gpt2", "phi") else h
        return self.layer_count * (norm + bias) + last + (self.vocabulary if self.layers == "phi" else 0)

    @property
    def weights(self) -> int:
        """All frozen weights."""
        return self.linear_weights + self.embedding_weights + self.small_weights


def read_shape(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a config.json means; raises RecipeError for an architecture that is not known here."""
    kind = str(config.get("model_type", ""))
    if kind not in _LAYERS:
        raise RecipeError(
            f"base.name: {name} is of the architecture {kind or 'that its config does not name'}, whose memory cannot "
            f"be planned yet. Known are {', '.join(_LAYERS)}."
        )

    def number(key: str, default: int | None = None) -> int:
        value = config.get(_GPT2_NAMES.get(key, key) if kind == "gpt2" else key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise RecipeError(f"base.name: the config of {name} has no whole number as {key}.")
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    tied = config.get("tie_word_embeddings")
    return ModelShape(
        architecture=kind,
        layers=_LAYERS[kind],
        layer_count=number("num_hidden_layers"),
        hidden=hidden,
        inner=number("intermediate_size", 4 * hidden if kind == "gpt2" else None),
        heads=heads,
        key_heads=heads if kind == "gpt2" else number("num_key_value_heads", heads),
        head_size=number("head_dim", 256 if kind.startswith("gemma") else max(1, hidden // heads)),
        vocabulary=number("vocab_size"),
        positions=number("max_position_embeddings", 2048),
        tied=kind in _TIED if tied is None else bool(tied),
        capped=bool(config.get("final_logit_softcapping") or config.get("attn_logit_softcapping")),
        dropout=bool(config.get("attn_pdrop", 0.1) if kind == "gpt2" else config.get("attention_dropout", 0)),
    )
