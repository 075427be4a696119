"""Tests that packed rows keep each model's own attention window in dialogues longer than the window."""

import numpy as np
import pytest
import torch

from lora_chat.config.plan import TrainingPlan
from lora_chat.config.recipe import AdapterSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.training.fast_path import check_windows
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.check_packing import relative_difference
from lora_chat.training.fast_path.check_windows import PackedLengths, find_wrong_window
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator
from lora_chat.training.fast_path.select import find_fast_path

WINDOW = 8
IDS = [3 + (7 * i * i) % 250 for i in range(48)]
SHAPE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
SLIDING = {"sliding_window": WINDOW}
FIRST_LAYER_SLIDES = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
LAST_LAYER_SLIDES = {**SLIDING, "use_sliding_window": True, "max_window_layers": 1}
KEPT = {
    "mistral": SLIDING,
    "phi3": SLIDING,
    "qwen2": LAST_LAYER_SLIDES,
    "qwen3": LAST_LAYER_SLIDES,
    "gemma3_text": FIRST_LAYER_SLIDES,
    "cohere2": FIRST_LAYER_SLIDES,
    "olmo3": FIRST_LAYER_SLIDES,
    "smollm3": {**FIRST_LAYER_SLIDES, "use_sliding_window": True},
    "gemma2": FIRST_LAYER_SLIDES,  # eager attention, with the model's own masks
    "llama": SLIDING,  # a field that the model does not use
}
LOST = {
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 64, "attention_chunk_size": WINDOW},
    "qwen2_moe": {**EXPERTS, **LAST_LAYER_SLIDES, "shared_expert_intermediate_size": 32},
    "phimoe": {**EXPERTS, **SLIDING},
}


def make_model(name, settings):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(name, **SHAPE, **settings)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        base.get_output_embeddings().weight.mul_(8)  # otherwise the logits are nearly equal
    return attach_adapter(base, AdapterSection(rank=2), seed=3).eval()


def row(ids):
    return {"input_ids": ids, "labels": [-100, *ids[1:]]}


def measure_difference(model, attention):
    """Return how much the logits and gradients of two packed rows differ from those of `attention` on each row."""
    rows = [IDS, IDS[::-1]]
    weights = [p for name, p in model.named_parameters() if "lora_B" in name]
    packed = model(**PackedBatchCollator(share_prefix=False)([row(ids) for ids in rows]), use_cache=False).logits[0]
    gradients = torch.autograd.grad(packed.square().sum(), weights)
    model.set_attn_implementation(attention)
    alone = torch.cat([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in rows])
    expected = torch.autograd.grad(alone.square().sum(), weights)
    flat, flat_expected = (torch.cat([g.flatten() for g in part]) for part in (gradients, expected))
    return max(relative_difference(packed, alone), relative_difference(flat, flat_expected))


@pytest.mark.parametrize("name", KEPT)
def test_packed_rows_keep_the_window(name):
    model = make_model(name, KEPT[name])
    own = model.config._attn_implementation
    fast_path = find_fast_path(model, IDS)
    assert fast_path.packed_collator
    with fast_path.use_fused_layers(model):
        assert measure_difference(model, own) < 1e-4


@pytest.mark.parametrize("name", LOST)
def test_rows_are_padded_where_packing_loses_the_window(name):
    model = make_model(name, LOST[name])
    own = model.config._attn_implementation
    # Short samples do not show the window, so only the lengths of the data can.
    fast_path = find_fast_path(model, IDS[:WINDOW], (), PackedLengths(len(IDS), 2 * len(IDS)))
    assert fast_path.packed_collator is None
    assert f"attention window in dialogues of {len(IDS)} tokens" in fast_path.notes[0]
    assert model.config._attn_implementation == own
    model.set_attn_implementation(register_packed_attention())
    assert measure_difference(model, own) > 0.05


@pytest.mark.parametrize("name", LOST)
def test_rows_that_fit_into_the_window_are_packed(name):
    model = make_model(name, LOST[name])
    assert find_fast_path(model, IDS[:WINDOW]).packed_collator
    assert find_fast_path(make_model(name, LOST[name]), IDS[: WINDOW + 1]).packed_collator is None


def test_wrong_window_of_fused_layers_is_found(monkeypatch):
    model = make_model("mistral", SLIDING)
    model.set_attn_implementation(register_packed_attention())
    assert find_wrong_window(model, IDS, PackedLengths(48, 48)) == ""
    monkeypatch.setattr(check_windows, "sliding_window", lambda layer: WINDOW + 1)
    assert find_wrong_window(model, IDS, PackedLengths(WINDOW, 48)) == ""
    assert "attention window" in find_wrong_window(model, IDS, PackedLengths(WINDOW + 1, 48))


def test_rows_are_padded_if_the_position_in_the_packed_row_counts():
    model = make_model("llama4_text", {**LOST["llama4_text"], "floor_scale": 100, "no_rope_layers": [1, 0]})
    model.set_attn_implementation(register_packed_attention())
    assert find_wrong_window(model, IDS, PackedLengths(WINDOW, 99)) == ""
    assert "position in a row of 100 tokens" in find_wrong_window(model, IDS, PackedLengths(WINDOW, 100))


def test_unknown_mask_prevents_packing():
    model = make_model("phi3", {})
    model.set_attn_implementation(register_packed_attention())
    assert find_wrong_window(model, IDS, PackedLengths(48, 48)) == ""
    layer = model.get_base_model().model.layers[0]
    forward = layer.forward
    layer.forward = lambda x, attention_mask=None, **options: forward(
        x, attention_mask=attention_mask.clone(), **options
    )
    assert "attention window" in find_wrong_window(model, IDS, PackedLengths(48, 48))


def test_mask_that_is_known_for_the_sample_only_is_compared_at_full_length(monkeypatch):
    from transformers.models.phi3 import modeling_phi3

    def make_mask(**arguments):
        blocks = torch.full(arguments["inputs_embeds"].shape[:2], -1)  # as for pictures, of which a dialogue has none
        return create_mask(**arguments, block_sequence_ids=blocks)

    create_mask = modeling_phi3.create_causal_mask
    monkeypatch.setattr(modeling_phi3, "create_causal_mask", make_mask)
    model = make_model("phi3", {})
    model.set_attn_implementation(register_packed_attention())
    assert find_wrong_window(model, IDS, PackedLengths(48, 48)) == ""


def test_bound_of_packed_rows_follows_the_plan():
    def measure(**settings):
        plan = TrainingPlan.__new__(TrainingPlan)
        vars(plan).update({"fast_path": True, "effective_batch_size": 4, "micro_batch_size": 2, **settings})
        return PackedLengths.from_plan(np.array([10, 30, 20]), plan)

    assert measure(micro_batch_tokens=None) == PackedLengths(30, 50)
    assert measure(micro_batch_tokens=40) == PackedLengths(30, 40)
    assert measure(micro_batch_tokens=4000) == PackedLengths(30, 60)
    assert measure(micro_batch_tokens=5) == PackedLengths(30, 30)
