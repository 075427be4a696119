"""Tests of the selection of the fast path for a model."""

import os
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
ALL = pytest.mark.skipif("LORA_CHAT_ALL_BASES" not in os.environ, reason="on demand: LORA_CHAT_ALL_BASES=1")


def select_fast_path(folder, mode="none", ids=IDS, **adapter):
    base = find_base(BaseSection(name=str(folder)))
    model = load_base_model(base, plan_precision(QuantizationSection(mode=mode), BF16))
    model = attach_adapter(model, AdapterSection(rank=4, **adapter), seed=3)
    before = [p.detach().clone() for p in model.parameters()]
    fast_path = find_fast_path(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    return fast_path


@pytest.mark.parametrize("mode", ["none", "4bit"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
def test_covers_common_models_without_notes(random_base, architecture, mode):
    fast_path = select_fast_path(random_base(architecture), mode)
    assert fast_path.packed_collator
    assert fast_path.packed_collator.share_prefix
    assert fast_path.head
    assert fast_path.fused
    assert fast_path.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "4bit", pytest.param("8bit", marks=ALL)])
def test_accepts_rounding_of_a_real_model(mode):
    generator = random.Random(1)  # random tokens cause large states, where bf16 is coarse
    fast_path = select_fast_path("smollm2-135m-instruct", mode, [generator.randrange(100, 40000) for _ in range(48)])
    assert fast_path.packed_collator
    assert fast_path.fused
    assert fast_path.notes == ()


@pytest.mark.parametrize(
    ("architecture", "adapter", "mode", "reason"),
    [
        ("llama", {"dropout": 0.2}, "none", "dropout"),
        ("llama", {"variant": "dora"}, "none", "DoRA"),
        ("gpt2", {}, "none", "GPT2Block"),
    ],
)
def test_explains_uncovered_parts(random_base, architecture, adapter, mode, reason):
    (note,) = select_fast_path(random_base(architecture), mode, **adapter).notes
    assert reason in note


@pytest.mark.parametrize("mistake", ["sign", "zero", "NaN"])
def test_detects_wrong_gradients(random_base, monkeypatch, mistake):
    correct_backward = mlp_block.rms_norm_backward

    def wrong(grad_out, x, weight, squares, epsilon, residual):
        result = correct_backward(grad_out, x, weight, squares, epsilon, residual)
        return {
            "sign": residual - (result - residual),
            "zero": torch.zeros_like(residual),
            "NaN": result * torch.nan,
        }[mistake]

    monkeypatch.setattr(mlp_block, "rms_norm_backward", wrong)
    fast_path = select_fast_path(random_base("llama"))
    assert not fast_path.fused
    assert fast_path.head is None
    (note,) = fast_path.notes
    assert "gradients" in note
