"""Facts about model architectures, one `ArchitectureSpec` for each `model_type` of a config.json.

Sources: the models in Transformers 5, vLLM's `SupportsLoRA` (August 2026), llama.cpp's `conversion/`, mlx-lm 0.32's
`models/`.
"""

from dataclasses import dataclass
from typing import Literal

LinearSize = Literal["hidden", "query", "key", "mlp"]
"""Hidden states, all query heads, all key heads, inside of the MLP."""


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer of a decoder layer: its name, the size of its input, and the sizes that its outputs add up to."""

    name: str
    inputs: LinearSize
    outputs: tuple[LinearSize, ...]
    bias: bool = False


@dataclass(frozen=True)
class ArchitectureSpec:
    """The facts about one `model_type` that memory, the fast path, export and other programs depend on."""

    model_type: str
    layer_family: str | None = None
    """Decoder layers whose bytes are in planning/layer_bytes.json; None if memory cannot be planned."""
    linear_layers: tuple[LinearSpec, ...] = ()
    """Linear layers of one decoder layer."""
    hidden_size_norms: int = 2
    """Norm weights and biases of a decoder layer, in multiples of the hidden size."""
    has_head_norms: bool = False
    """Whether queries and keys have norms of the head's size."""
    has_layer_norm: bool = False
    """Whether norms are layer norms with a bias, whose result autocast leaves in fp32."""
    has_head_bias: bool = False
    """Whether the LM head has a bias."""
    has_learned_positions: bool = False
    has_kv_heads: bool = True
    """Whether the number of key heads can differ from the number of query heads."""
    tied_by_default: bool = False
    """Whether the LM head shares the embedding's weights if the config does not say."""
    default_head_dim: int | None = None
    """Head size if the config names none; None: hidden size / number of heads."""
    default_mlp_ratio: int | None = None
    """MLP size / hidden size if the config names no MLP size; None: the config must name it."""
    config_names: tuple[tuple[str, str], ...] = ()
    """Fields of the config with other names, as (usual name, name here)."""
    attention_dropout: tuple[str, float] = ("attention_dropout", 0.0)
    """Field of the config with attention's dropout, and its default."""
    fused_layer: str | None = None
    """Class of the decoder layers that the fast path computes: RMS norm, rotary positions, SiLU-gated MLP."""
    has_config_window: bool = False
    """Whether attention's window is read from the config; other models store it in the attention layer."""
    stores_transposed_weights: bool = False
    """Whether linear layers are Conv1D, (in, out). llama.cpp cannot load the adapter that its converter writes."""
    llama_cpp_fields: tuple[tuple[str, str, float | None], ...] = ()
    """Fields that llama.cpp's converter needs and Transformers does not write: (needed, field with the value, default).

    A dot in the second name leads into a group of fields. Without a value and default, the field is left out.
    """
    auto_class: str = "AutoModelForCausalLM"
    """Class of Transformers that loads the model for text."""
    layers_without_lora: tuple[str, ...] = ()
    """Names of linear layers on which PEFT refuses LoRA (`_check_lora_target_modules_mamba` of its tuners_utils.py)."""
    vllm_lora: bool | None = None
    """Whether vLLM's model takes LoRA; None if unknown."""
    has_mlx_model: bool = False
    """Whether mlx-lm has a model for it."""

    def config_name(self, name: str) -> str:
        """Return the name that a usual field of a config has here."""
        return dict(self.config_names).get(name, name)


CONCATENATED_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Linear layers over a shared input, which the fast path multiplies with together."""

FINAL_SOFTCAPPING_FIELD = "final_logit_softcapping"
SOFTCAPPING_FIELDS = (FINAL_SOFTCAPPING_FIELD, "attn_logit_softcapping")
"""Fields of a config that cap the logits and the scores of attention."""
LOGIT_SCALING_FIELDS = (
    FINAL_SOFTCAPPING_FIELD,
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)
"""Fields of a config by which the logits are more than the LM head's product."""

_MLP = (
    LinearSpec("gate_proj", "hidden", ("mlp",)),
    LinearSpec("up_proj", "hidden", ("mlp",)),
    LinearSpec("down_proj", "mlp", ("hidden",)),
)


def _separate_linears(*, qkv_bias: bool = False) -> tuple[LinearSpec, ...]:
    """Return the linear layers of Llama: separate projections of attention, and a gated MLP."""
    return (
        LinearSpec("q_proj", "hidden", ("query",), qkv_bias),
        LinearSpec("k_proj", "hidden", ("key",), qkv_bias),
        LinearSpec("v_proj", "hidden", ("key",), qkv_bias),
        LinearSpec("o_proj", "query", ("hidden",)),
        *_MLP,
    )


def _llama_like(model_type: str, fused_layer: str, *, qkv_bias: bool = False, window: bool = False) -> ArchitectureSpec:
    """Return the facts about a model with Llama's decoder layers."""
    return ArchitectureSpec(
        model_type,
        "llama",
        _separate_linears(qkv_bias=qkv_bias),
        fused_layer=fused_layer,
        has_config_window=window,
        vllm_lora=True,
        has_mlx_model=True,
    )


def _gemma(model_type: str, hidden_size_norms: int, *, has_head_norms: bool = False) -> ArchitectureSpec:
    """Return the facts about a version of Gemma. Soft caps are named by the config itself."""
    return ArchitectureSpec(
        model_type,
        model_type,
        _separate_linears(),
        hidden_size_norms=hidden_size_norms,
        has_head_norms=has_head_norms,
        tied_by_default=True,
        default_head_dim=256,
        vllm_lora=True,
        has_mlx_model=True,
    )


ARCHITECTURES = (
    _llama_like("llama", "LlamaDecoderLayer"),
    _llama_like("mistral", "MistralDecoderLayer", window=True),
    _llama_like("qwen2", "Qwen2DecoderLayer", qkv_bias=True),
    ArchitectureSpec(
        "qwen3",
        "qwen3",
        _separate_linears(),
        has_head_norms=True,
        fused_layer="Qwen3DecoderLayer",
        vllm_lora=True,
        has_mlx_model=True,
    ),
    _gemma("gemma", 2),
    _gemma("gemma2", 4),
    _gemma("gemma3_text", 4, has_head_norms=True),
    ArchitectureSpec(
        "phi",
        "phi",
        (
            LinearSpec("q_proj", "hidden", ("query",), bias=True),
            LinearSpec("k_proj", "hidden", ("key",), bias=True),
            LinearSpec("v_proj", "hidden", ("key",), bias=True),
            LinearSpec("dense", "query", ("hidden",), bias=True),
            LinearSpec("fc1", "hidden", ("mlp",), bias=True),
            LinearSpec("fc2", "mlp", ("hidden",), bias=True),
        ),
        has_layer_norm=True,  # one norm for each layer
        has_head_bias=True,
        vllm_lora=True,
        has_mlx_model=True,
    ),
    ArchitectureSpec(
        "phi3",
        "phi3",
        (
            LinearSpec("qkv_proj", "hidden", ("query", "key", "key")),
            LinearSpec("o_proj", "query", ("hidden",)),
            LinearSpec("gate_up_proj", "hidden", ("mlp", "mlp")),
            LinearSpec("down_proj", "mlp", ("hidden",)),
        ),
        vllm_lora=True,
        has_mlx_model=True,
    ),
    ArchitectureSpec(
        "gpt2",
        "gpt2",
        (
            LinearSpec("c_attn", "hidden", ("hidden", "hidden", "hidden"), bias=True),
            LinearSpec("c_proj", "hidden", ("hidden",), bias=True),
            LinearSpec("c_fc", "hidden", ("mlp",), bias=True),
            LinearSpec("c_proj", "mlp", ("hidden",), bias=True),
        ),
        hidden_size_norms=4,
        has_layer_norm=True,
        has_learned_positions=True,
        has_kv_heads=False,
        tied_by_default=True,
        default_mlp_ratio=4,
        config_names=(
            ("hidden_size", "n_embd"),
            ("intermediate_size", "n_inner"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
            ("max_position_embeddings", "n_positions"),
        ),
        attention_dropout=("attn_pdrop", 0.1),
        stores_transposed_weights=True,
        llama_cpp_fields=(("n_ctx", "n_positions", None),),
        vllm_lora=False,
    ),
    # Memory cannot be planned for the architectures below. Other programs read them.
    ArchitectureSpec("gemma3", vllm_lora=True, has_mlx_model=True),
    ArchitectureSpec("granite", vllm_lora=True, has_mlx_model=True),
    ArchitectureSpec("mixtral", vllm_lora=True),
    ArchitectureSpec("olmo", vllm_lora=True),
    ArchitectureSpec("olmo2", vllm_lora=True, has_mlx_model=True),
    ArchitectureSpec("olmo3", vllm_lora=True, has_mlx_model=True),
    ArchitectureSpec("opt", vllm_lora=True),
    ArchitectureSpec("smollm3", vllm_lora=True, has_mlx_model=True),
    ArchitectureSpec("bloom", vllm_lora=False),
    ArchitectureSpec("falcon", vllm_lora=False),
    ArchitectureSpec("gemma3n", vllm_lora=False),
    *(
        ArchitectureSpec(model_type, auto_class="AutoModelForImageTextToText")
        for model_type in ("glm4v", "internvl", "lfm2_vl", "llava", "mistral3", "paligemma", "smolvlm")
    ),
    *(
        ArchitectureSpec(model_type, auto_class="AutoModelForImageTextToText")
        for model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
    ),
    *(ArchitectureSpec(model_type, auto_class="AutoModelForMultimodalLM") for model_type in ("qwen2_audio", "voxtral")),
    *(
        ArchitectureSpec(model_type, layers_without_lora=("out_proj",))
        for model_type in ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
    ),
    ArchitectureSpec(
        "gpt_neox",
        llama_cpp_fields=(("rotary_pct", "rope_parameters.partial_rotary_factor", 0.25),),
        vllm_lora=False,
        has_mlx_model=True,
    ),
    # Transformers turns whole heads and does not read this field, which is 1.0 in published configs.
    ArchitectureSpec("cohere2", llama_cpp_fields=(("rotary_pct", "", 1.0),)),
    ArchitectureSpec("gptj", vllm_lora=False),
    ArchitectureSpec("mpt", vllm_lora=False),
    ArchitectureSpec("stablelm", vllm_lora=False, has_mlx_model=True),
)
"""Every architecture of which something is known; to add one, add its row here."""


def find_architecture(model_type: str | None) -> ArchitectureSpec:
    """Return the facts about a `model_type`; the fields of an unknown one have their defaults."""
    unknown = ArchitectureSpec(model_type or "")
    return next((spec for spec in ARCHITECTURES if spec.model_type == model_type), unknown)


def find_fused_architecture(layer_class: str) -> ArchitectureSpec | None:
    """Return the architecture whose decoder layers have a class, or None if the fast path does not compute them."""
    return next((spec for spec in ARCHITECTURES if spec.fused_layer == layer_class), None)
