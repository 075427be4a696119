"""Caching dense weights changes only the time."""

import pytest
import torch

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.models.quantization import dequantize, weight_cache
from lora_chat.system.hardware import Hardware


def load(folder, bfloat16, mode="4bit"):
    precision = plan_precision(QuantizationSection(mode=mode), Hardware("cpu", "test", 0, bfloat16, 2))
    return load_base_model(find_base(BaseSection(name=str(folder))), precision)


def results(model):
    """Return the logits and the gradients of LoRA weights that are not all zero."""
    adapted = attach_adapter(model, AdapterSection(rank=4, dropout=0.1), seed=1).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    logits = adapted(input_ids=torch.arange(5, 30)[None]).logits
    logits.float().logsumexp(-1).sum().backward()
    return logits.detach(), [p.grad for p in adapted.parameters() if p.requires_grad]


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])
def test_cached_weights_give_the_same_bits(random_base, monkeypatch, architecture, bfloat16):
    cached = load(random_base(architecture), bfloat16)
    assert any("forward" in vars(m) for m in cached.modules() if type(m).__name__ == "Linear4bit")
    monkeypatch.setattr(weight_cache, "_cache_limit_bytes", 0)
    fresh = load(random_base(architecture), bfloat16)
    for layer in fresh.modules():
        vars(layer).pop("forward", None)  # restores bitsandbytes' forward
    (logits, gradients), (expected_logits, expected_gradients) = results(cached), results(fresh)
    assert torch.equal(logits, expected_logits)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))
    assert all(g.abs().sum() > 0 for g in gradients)


def test_caches_nothing_without_quantization(random_base):
    assert not weight_cache.cache_dense_weights(load(random_base("llama"), True, "none"))


def test_cached_8bit_layers_keep_their_forward(random_base):
    """The cache is only for training, because otherwise bitsandbytes rounds activations too."""
    model = load(random_base("llama"), True, "8bit")
    layers = [m for m in model.modules() if dequantize.is_int8_linear(m)]
    assert layers
    with weight_cache.cached_int8_weights(model):
        assert all("dense_weight" in vars(layer) for layer in layers)
        cached = [dequantize.get_dense_weight(layer) for layer in layers]
    for layer, before in zip(layers, cached, strict=True):
        assert "forward" not in vars(layer)
        assert "dense_weight" not in vars(layer)
        dense = dequantize.get_dense_weight(layer)
        assert torch.equal(before, dense.to(before.dtype))
        layer(torch.randn(2, layer.in_features, dtype=torch.bfloat16))
        assert torch.equal(dequantize.get_dense_weight(layer), dense)


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("mode", ["4bit", "8bit"])
def test_values_in_the_shared_buffer_are_the_same_bits(random_base, monkeypatch, mode, bfloat16):
    monkeypatch.setattr(weight_cache, "_cache_limit_bytes", 0)
    model = load(random_base("llama"), bfloat16, mode)
    layers = [m for m in model.modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]
    before = [dequantize.get_dense_weight(layer, model.dtype) for layer in layers]
    with dequantize.shared_buffer(model) as size:
        # 4-bit layers have had a buffer since they were loaded.
        assert size == (mode == "8bit") * max(value.nbytes for value in before)
        addresses = set()
        for layer, value in zip(layers, before, strict=True):
            buffered = dequantize.get_buffered_dense_weight(layer, model.dtype)
            assert torch.equal(buffered, value)
            addresses.add(buffered.data_ptr())
            assert dequantize.get_dense_weight(layer, model.dtype).data_ptr() not in addresses  # a separate tensor
    assert len(addresses) == 1


def test_cached_weights_need_no_buffer(random_base):
    with dequantize.shared_buffer(load(random_base("llama"), True)) as size:
        assert size == 0
