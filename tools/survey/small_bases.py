"""Small random bases of every causal language model of the installed Transformers, for `survey_bases.py`."""

import warnings
from pathlib import Path
from typing import Any

WIDTH, LAYERS = 64, 2

SMALL = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embedding_size", "attention_hidden_size", "dim_model"), WIDTH
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "attention_head_dim", "kv_channels", "global_head_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(
        ("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dff", "ffn_hidden_size"), 128
    ),
    **dict.fromkeys(("intermediate_size_mlp", "shared_intermediate_size", "shared_expert_intermediate_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_experts_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "moe_nums_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim"), 16),
    "qk_head_dim": 32,
    "linear_num_heads": 4,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 24),
    **dict.fromkeys(("index_n_heads", "mamba_n_groups", "n_groups"), 2),
    **dict.fromkeys(("mamba_d_state", "state_size", "mamba_d_head", "mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 1024),
    "index_topk": 64,
    "sliding_window": 64,
    "mamba_n_heads": 8,
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "vocab_size_per_layer_input": 259,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "image_size": 28,
    "depth": 2,
    "patch_size": 14,
    "num_nextn_predict_layers": 0,
}
"""Sizes by the name of a config's field. A field that a config does not have is not set."""

_LINEAR_THEN_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_OWN_TEXT = {
    "qwen3_5": _LINEAR_THEN_FULL,
    "qwen3_5_moe": _LINEAR_THEN_FULL,
    "qwen2_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
    "qwen2_5_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
    "qwen4_exp": {"layer_types": ["linear_attention", "full_attention"]},
    "dots3_note": {"num_key_value_heads": 4},
}
"""Fields of `text_config` by `model_type`."""
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {**_LINEAR_THEN_FULL, "mlp_layer_types": ["dense", "sparse"]},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"patcher_config": {}, "encoder_hash_byte_group_vocab": 64},
    "codegen": {"rotary_dim": 8},
    "cpmant": {"prompt_types": 2, "prompt_length": 2, "dim_ff": 128, "dim_head": 16},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "dots1": {"num_key_value_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {**_LINEAR_THEN_FULL, "mlp_layer_types": ["dense", "sparse"], "q_lora_rank": None},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5_moe_text": _LINEAR_THEN_FULL,
    "qwen3_5_text": _LINEAR_THEN_FULL,
    "qwen3_next": _LINEAR_THEN_FULL,
    "qwen4_exp_text": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_key_value_heads": 2},
    "zamba2": {"mamba_headdim": 16, "n_mamba_heads": 8, "mamba_ngroups": 2},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields by `model_type`, where the sizes above do not fit together."""

TOKEN_IDS = (
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "forced_eos_token_id",
)


def small_config(model_type: str, ids: dict[str, int | None]) -> Any:
    """Return a config of a few hundred thousand weights at most.

    Raises whatever Transformers raises where the sizes do not fit together.
    """
    from transformers import AutoConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields = _small_fields(AutoConfig.for_model(model_type).to_dict(), ids)
        fields.pop("model_type", None)
        if model_type in _OWN_TEXT:
            fields["text_config"] |= _OWN_TEXT[model_type]
        return AutoConfig.for_model(model_type, **{**fields, **OWN.get(model_type, {})})


def _small_fields(fields: dict[str, Any], ids: dict[str, int | None]) -> dict[str, Any]:
    small: dict[str, Any] = {"model_type": fields["model_type"]} if "model_type" in fields else {}
    for name, value in fields.items():
        if name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            small[name] = SMALL[name]
        elif name in ids or name in TOKEN_IDS:
            small[name] = value if value is None else ids["eos_token_id"] if name not in ids else ids[name]
        elif isinstance(value, float) and name.endswith(("dropout", "pdrop", "dropout_prob")):
            small[name] = 0.0  # otherwise the fast and the stock path differ by chance
        elif name.endswith("config") and isinstance(value, dict) and value:
            small[name] = _small_fields(value, ids)
    if "kv_lora_rank" in small and "num_key_value_heads" in small:  # latent attention has a key for each query head
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def find_class(config: Any) -> Any:
    """Return the auto class that loads a model for text."""
    import transformers

    is_causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForImageTextToText


def write_small_base(model_type: str, folder: Path) -> int:
    """Write a random base with the tokenizer of `tiny-random`, and return its number of weights.

    Raises whatever Transformers raises where the model cannot be built, saved, read or trained.
    """
    import torch
    from transformers import AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base

    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"))
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    config = small_config(model_type, ids)
    torch.manual_seed(1)
    auto_class = find_class(config)
    model = auto_class.from_config(config, dtype=torch.float32)
    head = model.get_output_embeddings()
    if head is not None:
        with torch.no_grad():
            # Otherwise the logits are nearly equal. A tied head would then predict each token again.
            head.weight.mul_(2 if head.weight is model.get_input_embeddings().weight else 8)
    model.save_pretrained(folder)
    row = torch.arange(8, 24).unsqueeze(0)
    auto_class.from_pretrained(folder)(input_ids=row, labels=row).loss.backward()
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())
