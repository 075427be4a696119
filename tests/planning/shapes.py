"""Configs of the planned architectures, with any widths."""

from dataclasses import dataclass
from typing import Any

from transformers.models.gemma import GemmaConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.phi import PhiConfig
from transformers.models.phi3 import Phi3Config
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

_KINDS: dict[str, Any] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3_text": Gemma3TextConfig,
    "phi": PhiConfig,
    "phi3": Phi3Config,
    "gpt2": GPT2Config,
}
ARCHITECTURES = tuple(_KINDS)
LLAMA_8B_CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
"""The fields of config.json of an 8B Llama that decide its shape."""
_HEADS_FILL_HIDDEN = ("qwen2", "phi", "phi3", "gpt2")
"""Architectures whose heads together have the hidden size."""


@dataclass(frozen=True)
class Widths:
    """The widths of a decoder layer."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def fit(architecture: str, widths: Widths) -> Widths:
    """Return the nearest widths that an architecture can have."""
    hidden = widths.num_heads * widths.head_dim if architecture in _HEADS_FILL_HIDDEN else widths.hidden_size
    key_heads = widths.num_heads if architecture == "gpt2" else widths.num_kv_heads
    return Widths(hidden, widths.intermediate_size, widths.num_heads, key_heads, widths.head_dim)


def make_config(architecture: str, widths: Widths, layers: int, vocabulary: int, *, tied: bool = True) -> Any:
    """Return a config for random weights, which `lora_chat.models.shape` can read."""
    w = fit(architecture, widths)
    ids = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    if architecture == "gpt2":
        return GPT2Config(
            n_embd=w.hidden_size,
            n_inner=w.intermediate_size,
            n_layer=layers,
            n_head=w.num_heads,
            n_positions=32768,
            vocab_size=vocabulary,
            **ids,
        )
    extra: dict[str, Any] = {} if architecture in _HEADS_FILL_HIDDEN else {"head_dim": w.head_dim}
    if architecture == "gemma":
        extra |= {"hidden_activation": "gelu_pytorch_tanh"}
    if architecture in ("mistral", "phi3"):
        extra |= {"sliding_window": None}
    return _KINDS[architecture](
        hidden_size=w.hidden_size,
        intermediate_size=w.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=w.num_heads,
        num_key_value_heads=w.num_kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=32768,
        tie_word_embeddings=tied,
        **extra,
        **ids,
    )
