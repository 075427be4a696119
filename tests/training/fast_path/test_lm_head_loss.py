"""Tests that the fused LM head loss and its gradient equal plain cross entropy."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_chat.config.recipe import AdapterSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.training.fast_path.lm_head_loss import LMHeadLoss, allocate_logit_buffers, find_lm_head


@pytest.mark.parametrize("positions", [0, 1, 255, 256, 600])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_head_loss_equals_cross_entropy(positions, dtype, tolerance):
    generator = torch.Generator().manual_seed(positions)
    weight = torch.randn(97, 16, generator=generator).to(dtype)
    ids = torch.randint(0, 97, (positions,), generator=generator)
    hidden = torch.randn(positions, 16, generator=generator).to(dtype)
    fused, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = LMHeadLoss.apply(fused, weight, ids, torch.tensor(7), allocate_logit_buffers(weight, 16))
    reference = torch.nn.functional.cross_entropy((plain @ weight.T).float(), ids, reduction="sum") / 7
    (2 * loss).backward()
    (2 * reference).backward()
    assert loss.item() == pytest.approx(reference.item(), rel=tolerance)
    assert torch.allclose(fused.grad.float(), plain.grad.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("architecture", "changes", "covered"),
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("gpt2", {}, True),
        ("gemma2", {"final_logit_softcapping": 30.0}, False),
        ("phi", {}, False),  # its head has a bias
    ],
)
def test_covers_only_plain_heads(random_base, architecture, changes, covered):
    folder = random_base(architecture)
    config = AutoConfig.from_pretrained(folder, **changes)
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(folder, config=config), AdapterSection(rank=4), seed=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name
    head = find_lm_head(model)
    assert (head is not None) is covered
    if head is not None:
        ids = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(0))
        labels = ids.clone()
        labels[0, :20] = -100
        stock = model(input_ids=ids, labels=labels).loss
        inputs = {"input_ids": ids, "labels": labels, "supervised": torch.arange(19, 39)}
        assert head.loss(inputs, 20).item() == pytest.approx(stock.item(), abs=1e-4)
