"""Adapters of mixture-of-experts bases: what LoRA is on, and that every reader computes the same function."""

import json
import os

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.models.adapter import (
    attach_adapter,
    load_adapter,
    load_adapters,
    merge_adapter,
    resolve_targets,
    write_peft_adapter,
)
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import LocalBase, load_base_model
from lora_chat.models.experts import format_expert_note, has_experts, list_expert_weights
from tests.current_architectures import TEXT as CURRENT
from tests.models.expert_bases import EXPERT_BASES, make_expert_base, make_expert_config

FP32 = PrecisionPlan(device="cpu", mode="none", double_quantization=True, dtype="float32")
IDS = torch.randint(3, 258, (2, 24), generator=torch.Generator().manual_seed(1))
QUICK = ("qwen3_moe", "gpt_oss", "llama4_text")
"""Bases whose names PEFT converts, with transposed weights and biases, and with transposed weights that PEFT turns."""
ALL = pytest.mark.skipif("LORA_CHAT_ALL_BASES" not in os.environ, reason="on demand: LORA_CHAT_ALL_BASES=1")
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")


def meta_model(architecture, **settings):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(make_expert_config(architecture, **settings))


@pytest.mark.parametrize(
    ("architecture", "targets", "experts"),
    [
        ("qwen3_moe", ATTENTION, "mlp.experts"),
        ("gpt_oss", ATTENTION, "mlp.experts"),
        ("qwen2_moe", ATTENTION, "mlp.experts"),  # with shared experts and their gate
        ("llama4_text", ATTENTION, "feed_forward.experts"),  # its router is a linear layer
        (
            "deepseek_v3",
            ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"),
            "mlp.experts",
        ),
        ("granitemoehybrid", ("in_proj", *ATTENTION), "block_sparse_moe.experts"),  # with Mamba layers
        ("gemma4_text", ATTENTION, "experts"),
    ],
)
def test_all_linear_means_attention_and_experts_are_added_on_request(architecture, targets, experts):
    model = meta_model(architecture)
    settings = resolve_targets(model, AdapterSection())
    assert settings.target_modules == tuple(sorted(targets))
    assert not settings.experts
    with_experts = resolve_targets(model, AdapterSection(experts=True))
    assert with_experts.experts == (f"{experts}.down_proj", f"{experts}.gate_up_proj")
    config = attach_adapter(model, AdapterSection(rank=4, experts=True)).peft_config["default"]
    assert set(config.target_parameters) == set(with_experts.experts)
    assert set(config.target_modules) == set(targets)
    assert not config.rank_pattern


def test_selected_decoder_layers_hold_for_experts_too():
    model = meta_model("mixtral")
    settings = resolve_targets(
        model, AdapterSection(experts=("down_proj",), layers="last 1", rank_pattern={"q_proj": 8})
    )
    assert settings.experts == ("model.layers.2.mlp.experts.down_proj",)
    assert settings.target_modules == tuple(f"model.layers.2.self_attn.{name}" for name in ATTENTION)
    assert resolve_targets(model, settings.to_section()) == settings  # as a training that starts from it has them
    with pytest.raises(RecipeError, match=r"has no layers\.7\.mlp"):
        resolve_targets(model, AdapterSection(experts=("layers.7.mlp.experts.down_proj",)))
    adapted = attach_adapter(model, AdapterSection(rank=4, experts=True, layers=(1,), target_modules=()))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4
    assert all(".layers.1.mlp.experts." in name for name in trained)
    with pytest.raises(RecipeError, match="decides no adapted layer"):
        resolve_targets(meta_model("mixtral"), AdapterSection(experts=True, rank_pattern={"experts.down_proj": 8}))


def test_dense_base_keeps_all_linear():
    model = meta_model("llama")
    assert not has_experts(model)
    assert resolve_targets(model, AdapterSection()).target_modules == "all-linear"


def test_dense_layers_that_peft_would_read_as_experts_are_left_out():
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    config = AutoConfig.for_model("beam", **sizes, intermediate_size=128, vocab_size=264, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert not has_experts(model)
    settings = resolve_targets(model, AdapterSection())
    assert set(settings.target_modules) == set(ATTENTION)
    note = format_expert_note(model, AdapterSection(), settings.target_modules)
    assert note == "LoRA leaves out down_proj, gate_proj, up_proj: PEFT reads them as experts here."
    with pytest.raises(RecipeError, match=r"PEFT reads up_proj as experts.*\n?.*Fix: leave out up_proj"):
        resolve_targets(model, AdapterSection(target_modules=("q_proj", "up_proj")))
    assert not attach_adapter(model, AdapterSection()).peft_config["default"].target_parameters


def test_trained_parameters_are_counted_per_expert():
    config = make_expert_config("mixtral")
    adapted = attach_adapter(meta_model("mixtral"), AdapterSection(rank=4, experts=("down_proj",), target_modules=()))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    per_expert = 4 * (config.hidden_size + config.intermediate_size)
    assert trained == config.num_hidden_layers * config.num_local_experts * per_expert


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("qwen3_moe", {"target_modules": ("q_proj", "gate_proj")}, "adapter.experts=true"),
        ("qwen3_moe", {"target_modules": ("gate_up_proj",)}, "adapter.experts=true"),
        ("qwen3_moe", {"target_modules": ("gate",)}, "adapter.target_modules"),
        # A layer of the base has this name, but PEFT would train the experts in its place.
        ("deepseek_v3", {"target_modules": ("shared_experts.down_proj",)}, "adapter.experts=true"),
        ("deepseek_v3", {"target_modules": r".*\.(q_proj|o_proj|gate_proj)"}, "adapter.experts=true"),
        ("llama4_text", {"target_modules": ("router",)}, "is a router"),
        ("qwen2_moe", {"target_modules": ("shared_expert_gate",)}, "is a router"),
        ("qwen3_moe", {"experts": ("experts.up_proj",)}, "Choose from mlp.experts.down_proj"),
        ("llama", {"experts": True}, "has no experts"),
        ("dbrx", {"experts": True}, "PEFT cannot train"),
    ],
)
def test_refuses_targets_that_cannot_be_trained(architecture, settings, message):
    with pytest.raises(RecipeError, match=message):
        resolve_targets(meta_model(architecture), AdapterSection(**settings))


def test_trains_named_linear_layers_of_shared_experts():
    section = AdapterSection(rank=4, target_modules=("q_proj", "shared_expert.up_proj"))
    adapted = attach_adapter(meta_model("llama4_text"), section)
    trained = {
        name.split(".lora_")[0].rpartition("layers.")[2] for name, p in adapted.named_parameters() if p.requires_grad
    }
    assert {name.partition(".")[2] for name in trained} == {"self_attn.q_proj", "feed_forward.shared_expert.up_proj"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"variant": "dora"}, "variant"),
        ({"experts": False, "target_modules": ()}, "empty"),
    ],
)
def test_refuses_settings_that_experts_do_not_have(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapterSection(**{"experts": True, **settings})


def test_one_line_says_which_layers_are_trained():
    experts = meta_model("mixtral")
    assert "(q_proj) only; --set adapter.experts=true" in str(
        format_expert_note(experts, AdapterSection(), ("layers.0.q_proj", "q_proj"))
    )
    assert "and on its experts" in str(format_expert_note(experts, AdapterSection(experts=True), ("q_proj",)))
    assert format_expert_note(experts, AdapterSection(), "all-linear") is None
    assert format_expert_note(experts, AdapterSection(target_modules=("q_proj",)), ("q_proj",)) is None


def test_hybrid_dense_base_is_not_called_a_mixture_of_experts(cache_home):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon_h1", **CURRENT["falcon_h1"]))
    targets = resolve_targets(model, AdapterSection()).target_modules
    assert targets != "all-linear"
    assert format_expert_note(model, AdapterSection(), targets) is None


@pytest.mark.parametrize(
    "architecture", [*QUICK, *(pytest.param(name, marks=ALL) for name in EXPERT_BASES if name not in QUICK)]
)
def test_every_reader_computes_the_trained_function(architecture, tmp_path):
    """Attached, loaded, opened by plain PEFT and merged, an adapter on experts gives the same logits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = LocalBase(architecture, make_expert_base(architecture, tmp_path / "base"))
    model = load_base_model(base, FP32)
    before = logits(model)
    experts = bool(list_expert_weights(model))
    adapted = attach_adapter(model, AdapterSection(rank=4, experts=experts), seed=3)
    check_gradients(adapted)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    trained = logits(adapted)
    assert (trained - before).norm() > 0.1 * before.norm()

    write_peft_adapter(adapted, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    assert torch.equal(logits(PeftModel.from_pretrained(plain, tmp_path / "adapter")), trained)
    loaded = load_adapter(load_base_model(base, FP32), read_adapter(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), trained)
    merge_adapter(loaded).save_pretrained(tmp_path / "merged")
    merged = LocalBase(architecture, tmp_path / "merged")
    assert torch.allclose(logits(load_base_model(merged, FP32)), trained, atol=3e-4)
    assert list_tensors(tmp_path / "merged") == list_tensors(base.folder)


def test_adds_up_two_adapters_on_the_same_experts(tmp_path):
    base = LocalBase("qwen3_moe", make_expert_base("qwen3_moe", tmp_path / "base"))
    for seed in (1, 2):
        adapted = attach_adapter(load_base_model(base, FP32), AdapterSection(rank=4, experts=True), seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        write_peft_adapter(adapted, tmp_path / str(seed))
    blend = [(read_adapter(tmp_path / "1"), 0.5), (read_adapter(tmp_path / "2"), 0.7)]
    first, both = (logits(load_adapters(load_base_model(base, FP32), part)) for part in (blend[:1], blend))
    assert (both - first).norm() > 0.1 * first.norm()
    merged = merge_adapter(load_adapters(load_base_model(base, FP32), blend))
    assert torch.allclose(logits(merged), both, atol=3e-4)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


def check_gradients(model):
    output = model.train()(IDS, use_cache=False).logits
    torch.nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert all(gradient.norm() > 0 for name, gradient in trained.items() if "experts" in name and "lora_B" in name)


def list_tensors(folder):
    from safetensors import safe_open

    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def test_refuses_an_adapter_on_experts_that_the_base_does_not_have(tmp_path):
    adapted = attach_adapter(meta_model("qwen3_moe"), AdapterSection(rank=4, experts=True))
    adapted.to_empty(device="cpu")
    for parameter in adapted.parameters():
        parameter.data.zero_()
    write_peft_adapter(adapted, tmp_path)
    with pytest.raises(IntegrityError, match=r"it has no weights mlp\.experts"):
        load_adapter(meta_model("llama"), read_adapter(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for value in (["../x"], "mlp.experts", [1], ["a b"]):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_parameters": value}))
        with pytest.raises(IntegrityError, match="target_parameters must be a list of names"):
            load_adapter(meta_model("qwen3_moe"), read_adapter(tmp_path))


def test_reads_an_adapter_on_the_experts_of_one_decoder_layer(tmp_path):
    base = LocalBase("qwen3_moe", make_expert_base("qwen3_moe", tmp_path / "base"))
    section = AdapterSection(rank=4, experts=True, layers=(1,), modules_to_save=("lm_head",))
    adapted = attach_adapter(load_base_model(base, FP32), section, seed=3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    write_peft_adapter(adapted, tmp_path / "adapter")
    loaded = load_adapter(load_base_model(base, FP32), read_adapter(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(adapted))
