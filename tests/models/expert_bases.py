"""Small random mixture-of-experts bases of many architectures."""

import inspect

import torch

_SMALL = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 16, "vocab_size": 264},
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"), 2),
    **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "shared_intermediate_size": 48},
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"), 1),
    **{"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
    **{"intermediate_size_mlp": 96, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32, "zero_expert_num": 1},
    **{"num_layers": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16},
    **{"linear_value_head_dim": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1},
    **{"mamba_expand": 2, "mamba_d_conv": 4, "mamba_dt_rank": 8, "kv_channels": 16, "sliding_window": 64},
    **{"index_n_heads": 2, "index_head_dim": 16, "index_topk": 512, "pad_token_id": 0, "eos_token_id": 2},
}
"""Sizes by the names that configs use for them; each config takes those that it has."""
_LATENT = {"head_dim": 8, "num_key_value_heads": 4}
"""Sizes of multi-head latent attention."""
_LINEAR = {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
_PLAIN = """
afmoe aria_text bailing_hybrid cohere2_moe ernie4_5_moe exaone_moe flex_olmo flint glm4_moe gpt_oss granitemoe
granitemoe_swa granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 jamba jetmoe kolibri1 laguna llama4_text mellum mimo_v2_flash
minimax minimax_m2 minimax_m3_vl_text mixtral olmoe phimoe qwen2_moe qwen3_moe solar_open
"""
_WITH_LATENT_ATTENTION = """
axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash
"""
EXPERT_BASES = {
    **{name: {} for name in _PLAIN.split()},
    **dict.fromkeys(_WITH_LATENT_ATTENTION.split(), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_moe_text"), _LINEAR),
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "deepseek_v4": {"o_groups": 1},
    "doge": {"is_moe": True, "num_experts": 16},
    "dots1": {"n_shared_experts": 1},
    "gemma4_text": {
        **{"enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0, "global_head_dim": 16},
        **{"num_global_key_value_heads": 2, "vocab_size_per_layer_input": 264},
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "nemotron_h": {
        **{"layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 8, "mamba_head_dim": 16},
        **{"ssm_state_size": 16, "n_groups": 1},
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Architectures with their special settings."""
_DBRX = {
    **{"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": 264},
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
}


def make_expert_config(architecture, **settings):
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[architecture]
    if architecture == "dbrx":
        return config_class(**_DBRX)
    known = set(config_class().to_dict()) | set(inspect.signature(config_class.__init__).parameters)
    small = {name: value for name, value in _SMALL.items() if name in known}
    return config_class(**{**small, "bos_token_id": None, **EXPERT_BASES.get(architecture, {}), **settings})


def make_expert_base(architecture, folder, **settings):
    """Write a random base without a tokenizer, whose logits differ clearly; return its folder."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_expert_config(architecture, **settings), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 or not parameter.isfinite().all():  # some are empty until they are loaded
                parameter.normal_(0, 0.1)
            elif parameter.abs().max() > 1e3:
                parameter.zero_()
        model.get_output_embeddings().weight.mul_(3)
    model.save_pretrained(folder)
    return folder
