"""Forwards that dequantize into a shared buffer equal bitsandbytes' forwards, and so do their gradients."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.models.quantization import weight_cache
from lora_chat.models.quantization.cpu_linear import dequantize_on_the_fly, dequantizing_on_the_fly
from lora_chat.models.quantization.dequantize import is_dequantized_on_the_fly
from lora_chat.system.hardware import Hardware
from lora_chat.training.fast_path.check_packing import without_dropout


def results(model):
    """Return the logits and the gradients of LoRA."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with without_dropout(model):
        logits = model(input_ids=torch.arange(5, 30)[None]).logits.float()
        gradients = torch.autograd.grad(logits.logsumexp(-1).sum(), trained)
    return logits.detach(), torch.cat([g.flatten().float() for g in gradients])


@pytest.mark.parametrize("mode", ["4bit", "8bit"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])
def test_results_equal_bitsandbytes(random_base, monkeypatch, architecture, mode):
    monkeypatch.setattr(weight_cache, "_cache_limit_bytes", 0)
    precision = plan_precision(QuantizationSection(mode=mode), Hardware("cpu", "test", 0, True, 2))
    base = load_base_model(find_base(BaseSection(name=str(random_base(architecture)))), precision)
    adapted = attach_adapter(base, AdapterSection(rank=4), seed=1).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    if mode == "4bit":  # loading replaced the forwards; without them, bitsandbytes' forwards run
        replaced = {name: vars(m).pop("forward") for name, m in adapted.named_modules() if "forward" in vars(m)}
        assert replaced
        # One layer of each kind keeps bitsandbytes' forward, so that a check compares with it.
        assert not any(".0." in name for name in replaced)
    before = {name: vars(module).get("forward") for name, module in adapted.named_modules()}
    logits, gradients = results(adapted)
    with dequantizing_on_the_fly(adapted) as num_replaced:
        stock = [n for n, m in adapted.named_modules() if n.endswith("base_layer") and "forward" not in vars(m)]
        assert num_replaced
        assert all(".0." in name for name in stock)
        new_logits, new_gradients = results(adapted)
    assert before == {name: vars(module).get("forward") for name, module in adapted.named_modules()}
    if mode == "4bit":
        assert torch.equal(new_logits, logits)
        assert torch.equal(new_gradients, gradients)
    else:  # bitsandbytes rounds 8-bit values to bf16 before it scales them
        assert cosine_similarity(new_logits.flatten(), logits.flatten(), dim=0) > 0.999
        assert cosine_similarity(new_gradients, gradients, dim=0) > 0.999


def test_every_layer_can_use_the_shared_buffer(random_base, monkeypatch):
    """A benchmark of few layers needs this, because otherwise a third of them would run bitsandbytes' forward."""
    monkeypatch.setattr(weight_cache, "_cache_limit_bytes", 0)
    precision = plan_precision(QuantizationSection(mode="4bit"), Hardware("cpu", "test", 0, True, 2))
    model = load_base_model(find_base(BaseSection(name=str(random_base("llama")))), precision)
    ids = torch.arange(5, 30)[None]
    before = model(input_ids=ids).logits
    quantized = [m for m in model.modules() if is_dequantized_on_the_fly(m)]
    assert dequantize_on_the_fly(model) == 0  # loading replaced them
    assert dequantize_on_the_fly(model, every_layer=True) == sum(1 for m in quantized if is_first(model, m))
    assert all("forward" in vars(m) for m in quantized)
    assert torch.equal(model(input_ids=ids).logits, before)


def is_first(model, layer):
    return any(module is layer and ".0." in name for name, module in model.named_modules())
