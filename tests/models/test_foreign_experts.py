"""Adapters on experts that PEFT itself wrote, with names and patterns of its users."""

import json

import pytest
import torch

from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import load_adapter
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import LocalBase, load_base_model
from lora_chat.models.foreign.fit import fit_foreign_adapter
from tests.models.expert_bases import make_expert_base

FP32 = PrecisionPlan(device="cpu", mode="none", double_quantization=True, dtype="float32")
IDS = torch.randint(3, 258, (1, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {name: make_expert_base(name, tmp_path_factory.mktemp(name)) for name in ("qwen3_moe", "gpt_oss")}


def write_adapter(base, folder, **settings):
    """Write an adapter with PEFT alone, and return the logits of its model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    adapted.save_pretrained(folder)
    return logits(adapted)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        # The example for gpt-oss in OpenAI's cookbook: the experts of some layers only.
        (
            "gpt_oss",
            {
                "target_modules": "all-linear",
                "target_parameters": ["1.mlp.experts.gate_up_proj", "2.mlp.experts.down_proj"],
            },
        ),
        ("gpt_oss", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
        # PEFT turns this into the routers, and the experts with another rank and alpha.
        ("qwen3_moe", {"target_modules": "all-linear"}),
        (
            "qwen3_moe",
            {
                "target_modules": ["q_proj"],
                "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
                "alpha_pattern": {"down_proj": 32},
            },
        ),
    ],
)
def test_opens_an_adapter_on_experts_as_the_same_function(bases, tmp_path, architecture, settings):
    expected = write_adapter(bases[architecture], tmp_path, **settings)
    base = LocalBase(architecture, bases[architecture])
    loaded = load_adapter(load_base_model(base, FP32), fit_foreign_adapter(read_adapter(tmp_path), base))
    assert torch.allclose(logits(loaded), expected, atol=1e-5)


def test_refuses_an_adapter_on_single_experts_of_transformers_4(bases, tmp_path):
    from safetensors.torch import save_file

    write_adapter(bases["qwen3_moe"], tmp_path, target_modules=["q_proj"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    layer = "base_model.model.model.layers.0.mlp.experts.0"
    weights = {
        f"{layer}.down_proj.lora_A.weight": torch.ones(4, 32),
        f"{layer}.down_proj.lora_B.weight": torch.ones(64, 4),
    }
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["down_proj"]}))
    with pytest.raises(IntegrityError, match="LoRA on single experts"):
        fit_foreign_adapter(read_adapter(tmp_path), LocalBase("qwen3_moe", bases["qwen3_moe"]))
