"""Small configs of hybrid, recurrent and multimodal architectures, and bases with random weights of them."""

from pathlib import Path

_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_HEADS = {**_SHAPE, "head_dim": 16}
_LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
_STATE_SPACE = {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {"hidden_size": 32, "intermediate_size": 64, "depth": 1, "num_heads": 2, "out_hidden_size": 64}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
_LFM2 = {**_SHAPE, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
_LLAMA4 = {**_HEADS, "num_local_experts": 2, "intermediate_size_mlp": 128}
_GEMMA4 = {
    **_HEADS,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 64,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 259,
    "global_head_dim": 16,
    "num_kv_shared_layers": 2,
}
TEXT = {
    "granite": _SHAPE,
    "granitemoehybrid": {
        **_SHAPE,
        **_MAMBA,
        "num_local_experts": 0,
        "shared_intermediate_size": 128,
        "layer_types": ["mamba", "attention"],
        "mamba_expand": 2,
    },
    "smollm3": _SHAPE,
    "glm": _HEADS,
    "glm4": _HEADS,
    "lfm2": _LFM2,
    "falcon_h1": {**_HEADS, **_MAMBA, "mamba_d_ssm": 128},
    "falcon_mamba": _STATE_SPACE,
    "mamba": _STATE_SPACE,
    "mamba2": {**_STATE_SPACE, "num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1},
    "bamba": {**_SHAPE, **_MAMBA, "mamba_expand": 2, "attn_layer_indices": [1]},
    "jamba": {
        **_SHAPE,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "mamba_d_state": 16,
        "mamba_dt_rank": 8,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "nemotron_h": {
        **_HEADS,
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 16,
        "expand": 2,
    },
    "zamba2": {
        **_SHAPE,
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 16,
        "mamba_headdim": 16,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
    },
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64, "intermediate_size": 128},
    "recurrent_gemma": {**_HEADS, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 64},
    "qwen3_next": {**_HEADS, **_LINEAR_ATTENTION, "num_experts": 4, "moe_intermediate_size": 32},
    "qwen3_5_text": {**_HEADS, **_LINEAR_ATTENTION},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma3_text": {**_HEADS, "sliding_window": 64},
    "gemma4_text": _GEMMA4,
    "llama4_text": _LLAMA4,
}
"""Settings of configs for text, by `model_type`."""
MULTIMODAL = {
    "gemma3": {
        "text_config": {**_HEADS, "sliding_window": 64},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
    },
    "gemma4": {
        "text_config": _GEMMA4,
        "vision_config": {**_VISION, "head_dim": 16, "num_key_value_heads": 2},
        "audio_config": None,
    },
    "qwen3_5": {"text_config": {**_HEADS, **_LINEAR_ATTENTION}, "vision_config": _QWEN_VISION},
    "mistral3": {
        "text_config": {**_HEADS, "model_type": "mistral"},
        "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 16},
    },
    "llama4": {
        "text_config": _LLAMA4,
        "vision_config": {
            **_VISION,
            "intermediate_size": 128,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        },
    },
    "qwen2_vl": {
        "text_config": {**_SHAPE, "rope_parameters": _MROPE},
        "vision_config": {"embed_dim": 32, "depth": 1, "num_heads": 2, "hidden_size": 64},
    },
    "qwen2_5_vl": {
        "text_config": {**_SHAPE, "rope_parameters": _MROPE},
        "vision_config": {**_QWEN_VISION, "fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {
        "text_config": {**_HEADS, "rope_parameters": _MROPE},
        "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]},
    },
    "qwen2_audio": {
        "text_config": {**_SHAPE, "model_type": "qwen2"},
        "audio_config": {
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
        },
    },
}
"""Settings of configs with towers for pictures or sound, by `model_type`."""


def make_config(name, **ids):
    """Return the small config of an architecture; `ids` are the size of the vocabulary and special tokens."""
    from transformers import AutoConfig

    if name in TEXT:
        return AutoConfig.for_model(name, **TEXT[name], **ids)
    settings = {**MULTIMODAL[name], "text_config": {**MULTIMODAL[name]["text_config"], **ids}}
    config = AutoConfig.for_model(name, **settings)
    for key in vars(config):
        if key.endswith(("_token_id", "_token_index")) and key not in ids:
            setattr(config, key, 5)  # a token of a picture or sound, inside of the small vocabulary
    return config


def make_current_base(name: str, folder: Path) -> Path:
    """Write a base with random weights and the tokenizer of `tiny-random`."""
    import torch
    from transformers import AutoTokenizer

    from lora_chat.models.auto_class import find_auto_class
    from lora_chat.models.bundled import find_bundled_base

    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = make_config(name, vocab_size=len(tokenizer), **ids)
    torch.manual_seed(1)
    model = find_auto_class(config, name).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)  # otherwise the logits are nearly equal
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
