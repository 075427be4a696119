"""A 16-bit model whose layers multiply in fp32 gives nearly the outputs of the fp32 model."""

import pytest
import torch

import lora_chat.models.float32_products as float32_products
from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.recipe import BaseSection
from lora_chat.models.base_model import find_base, load_base_model


def load(base, dtype):
    precision = PrecisionPlan(device="cpu", mode="none", double_quantization=True, dtype=dtype)
    return load_base_model(find_base(BaseSection(name=str(base))), precision)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("chunk", [2**26, 300])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_outputs_are_near_those_of_fp32(random_base, monkeypatch, architecture, chunk, dtype):
    monkeypatch.setattr(float32_products, "_WEIGHTS_PER_CHUNK", chunk)
    base, ids = random_base(architecture), torch.arange(3, 40)[None]
    expected = load(base, "float32")(ids).logits
    model = load(base, dtype)
    with torch.inference_mode(), float32_products.float32_products(model) as num_layers:
        wide = model(ids).logits
    assert num_layers > 8
    assert wide.dtype == model.dtype
    assert (wide.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_restores_the_forward_of_the_layers(random_base):
    model = load(random_base("llama"), "bfloat16")
    with float32_products.float32_products(model):
        assert any("forward" in vars(module) for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
