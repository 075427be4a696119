"""The fast path is proven on the model at hand; what is not fast is said."""

import random

import pytest
import torch

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.system.hardware import Hardware
from lora_chat.training.fast_path.layers import mlp_block
from lora_chat.training.fast_path.select import find_fast_path

BF16 = Hardware("cpu", "test", 0, True, 2)
IDS = list(range(10, 58))


def find(folder, mode="none", ids=IDS, **adapter):
    base = find_base(BaseSection(name=str(folder)))
    model = load_base_model(base, plan_precision(QuantizationSection(mode=mode), BF16))
    model = attach_adapter(model, AdapterSection(rank=4, **adapter), seed=3)
    before = [p.detach().clone() for p in model.parameters()]
    path = find_fast_path(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    return path


@pytest.mark.parametrize("mode", ["none", "4bit"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
def test_common_models_are_covered_and_nothing_is_said(random_base, architecture, mode):
    path = find(random_base(architecture), mode)
    assert path.packed_collator
    assert path.packed_collator.share_prefix
    assert path.head
    assert path.fused
    assert path.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "4bit", "8bit"])
def test_the_rounding_of_a_real_model_is_not_mistaken_for_a_neighbour(mode):
    dice = random.Random(1)  # tokens by chance make a trained model's states large, and bf16 coarse
    path = find("smollm2-135m-instruct", mode, [dice.randrange(100, 40000) for _ in range(48)])
    assert path.packed_collator
    assert path.fused
    assert path.notes == ()


@pytest.mark.parametrize(
    ("architecture", "adapter", "mode", "said"),
    [
        ("llama", {"dropout": 0.2}, "none", "dropout"),
        ("llama", {"variant": "dora"}, "none", "DoRA"),
        ("gpt2", {}, "none", "GPT2Block"),
    ],
)
def test_what_is_not_fast_is_said_with_the_reason(random_base, architecture, adapter, mode, said):
    (note,) = find(random_base(architecture), mode, **adapter).notes
    assert said in note


@pytest.mark.parametrize("mistake", ["sign", "zero", "not a number"])
def test_wrong_gradients_are_found_before_training(random_base, monkeypatch, mistake):
    right = mlp_block.rms_norm_backward

    def wrong(gradient, x, weight, squares, epsilon, residual):
        result = right(gradient, x, weight, squares, epsilon, residual)
        return {
            "sign": residual - (result - residual),
            "zero": torch.zeros_like(residual),
            "not a number": result * torch.nan,
        }[mistake]

    monkeypatch.setattr(mlp_block, "rms_norm_backward", wrong)
    path = find(random_base("llama"))
    assert not path.fused
    assert path.head is None
    (note,) = path.notes
    assert "gradients" in note
