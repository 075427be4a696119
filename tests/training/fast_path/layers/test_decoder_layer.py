"""Tests that fused decoder layers equal transformers' layers with PEFT's LoRA."""

from contextlib import nullcontext

import pytest
import torch

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.system.hardware import Hardware
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.layers.attention_block import apply_rotary_in_place
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers, unfused_reason
from lora_chat.training.fast_path.layers.matmul import balanced_matmul
from lora_chat.training.fast_path.layers.rms_norm import (
    rms_norm,
    rms_norm_backward,
    rms_norm_backward_by_autograd,
    rms_norm_from_mean_squares,
)
from lora_chat.training.fast_path.lm_head_loss import split_supervised
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator

FP32 = Hardware("cpu", "test", 0, False, 2)
BF16 = Hardware("cpu", "test", 0, True, 2)


def load(folder, mode, hardware=FP32, size=0.1, **adapter):
    base = find_base(BaseSection(name=str(folder)))
    model = attach_adapter(
        load_base_model(base, plan_precision(QuantizationSection(mode=mode), hardware)),
        AdapterSection(rank=4, **adapter),
        seed=3,
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * size
    return model.train()


def make_rows(lengths, shared):
    generator = torch.Generator().manual_seed(0)
    beginning = torch.randint(3, 259, (shared,), generator=generator).tolist()
    rows = []
    for length in lengths:
        ids = beginning + torch.randint(3, 259, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (shared + 2) + ids[shared + 2 :]})
    return rows


def take_gradients(model):
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def compute_separately(model, rows):
    """Return loss and gradients by the stock code, with each dialogue in a row for itself."""
    count = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows)
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(row["labels"][1:]), reduction="sum")
        (loss / count).backward()
        total += loss.item() / count
    return total, take_gradients(model)


def compute_packed(model, rows, share_prefix):
    keep, ids, batch = split_supervised(PackedBatchCollator(share_prefix)(rows))
    model.set_attn_implementation(register_packed_attention())
    with fused_layers(model) as covered, torch.autocast("cpu", torch.bfloat16, enabled=False):
        logits = model(**batch, use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[keep].float(), ids)
        loss.backward()
    return loss.item(), take_gradients(model), covered


@pytest.mark.parametrize("mode", ["none", "4bit", "8bit"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("shared", [0, 30])
def test_fused_layers_equal_stock_layers(random_base, architecture, mode, shared):
    model = load(random_base(architecture), mode)
    rows = make_rows([30, 7, 300, 31], shared)
    loss, gradients = compute_separately(model, rows)
    packed_loss, fused, covered = compute_packed(model, rows, share_prefix=True)
    assert covered == 2
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    assert gradients.keys() == fused.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, fused[name], atol=2e-5), name


def test_uncached_weights_give_the_same_gradients(random_base, monkeypatch):
    monkeypatch.setattr(
        "lora_chat.training.fast_path.layers.lora_group.concatenate_cached_weights", lambda layers: None
    )
    model = load(random_base("qwen2"), "4bit")
    rows = make_rows([30, 7], 0)
    loss, gradients = compute_separately(model, rows)
    packed_loss, fused, _ = compute_packed(model, rows, share_prefix=True)
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, fused[name], atol=2e-5), name


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_recomputing_layers_saves_memory_and_gives_the_same_gradients(random_base, architecture):
    model = load(random_base(architecture), "none")
    rows = make_rows([90, 60, 40], 20)

    def run(layers):
        for number, layer in enumerate(model.get_base_model().model.layers):
            layer.gradient_checkpointing = number < layers
        saved_bytes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved_bytes.append(t.nbytes) or t, lambda t: t):
            _, gradients, _ = compute_packed(model, rows, share_prefix=True)
        return sum(saved_bytes), gradients

    (all_bytes, expected), (half_bytes, some_recomputed), (fewest_bytes, all_recomputed) = run(0), run(1), run(2)
    assert all_bytes - half_bytes == half_bytes - fewest_bytes > 0.3 * all_bytes
    for name, gradient in expected.items():
        assert torch.equal(gradient, some_recomputed[name]), name
        assert torch.equal(gradient, all_recomputed[name]), name


def test_long_sequences_equal_stock_layers(random_base):
    """Attention weights of more than 512 tokens are recomputed for the gradient, in several tiles."""
    model = load(random_base("llama"), "none")
    rows = make_rows([700, 40, 650], 20)
    loss, gradients = compute_separately(model, rows)
    packed_loss, fused, _ = compute_packed(model, rows, share_prefix=True)
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, fused[name], atol=2e-5), name


def test_bf16_gradients_have_the_direction_of_fp32_gradients(random_base):
    rows = make_rows([90, 60, 40], 20)
    _, gradients = compute_separately(load(random_base("llama"), "none", BF16, size=0.02).float(), rows)
    _, fused, covered = compute_packed(load(random_base("llama"), "none", BF16, size=0.02), rows, share_prefix=True)
    assert covered == 2
    left, right = (torch.cat([g.flatten() for g in part.values()]) for part in (gradients, fused))
    assert torch.nn.functional.cosine_similarity(left, right, dim=0) > 0.999


def test_small_adapter_is_not_rounded_away(random_base):
    """bf16 would lose it beside a large residual stream, so LoRA is added to the layer's output first, as in PEFT."""
    rows = make_rows([60, 50], 0)
    batch = split_supervised(PackedBatchCollator(True)(rows))[2]

    def hidden(hardware, size, fused):
        model = load(random_base("llama"), "none", hardware, size)
        model.get_base_model().model.embed_tokens.weight.data.mul_(200)
        if hardware is FP32:
            model.float()
        model.set_attn_implementation(register_packed_attention())
        with fused_layers(model) if fused else nullcontext():
            return model.get_base_model().model(**batch, use_cache=False).last_hidden_state.float()

    def share(hardware, fused):
        """Return the share of the adapter's exact effect that remains."""
        exact = hidden(FP32, 0.001, False) - hidden(FP32, 0.0, False)
        actual = hidden(hardware, 0.001, fused) - hidden(hardware, 0.0, fused)
        return float((actual * exact).sum() / exact.square().sum())

    assert share(FP32, True) == pytest.approx(1, abs=0.01)
    assert share(BF16, True) == pytest.approx(share(BF16, False), abs=0.1)


@pytest.mark.parametrize(
    ("architecture", "mode", "adapter", "reason"),
    [
        ("gemma", "none", {}, "GemmaDecoderLayer is not supported"),
        ("gpt2", "none", {}, "GPT2Block is not supported"),
        ("llama", "none", {"dropout": 0.1}, "dropout"),
        ("llama", "none", {"variant": "dora"}, "DoRA"),
        ("llama", "none", {"target_modules": ("q_proj", "v_proj")}, "without LoRA"),
    ],
)
def test_uncovered_layers_keep_their_forward_with_a_reason(random_base, architecture, mode, adapter, reason):
    model = load(random_base(architecture), mode, **adapter)
    with fused_layers(model) as covered:
        assert covered == 0
    assert reason in unfused_reason(model)
    assert unfused_reason(load(random_base("llama"), "none")) == ""


def test_uses_stock_forward_without_borders_or_gradients(random_base):
    model = load(random_base("llama"), "none")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(input_ids=ids).logits
    with fused_layers(model):
        assert torch.equal(model(input_ids=ids).logits, expected)
        with torch.no_grad():
            assert torch.equal(model.eval().generate(ids, max_new_tokens=3, do_sample=False)[0, :4], ids[0])
    assert torch.equal(model.train()(input_ids=ids).logits, expected)


@pytest.mark.parametrize("rows", [1, 512, 576, 700, 1100, 2000])
@pytest.mark.parametrize("width", [40, 577, 960, 2050])
def test_product_in_column_groups_equals_product(rows, width, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # other numbers of threads split no product
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(*s, generator=generator) for s in ((rows, 8), (8, width)))
    assert torch.allclose(balanced_matmul(x, weight), x @ weight, atol=1e-5)


def test_rms_norm_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    x, residual, grad_out = (torch.randn(9, 16, generator=generator) + 0.5 for _ in range(3))
    weight = torch.rand(16, generator=generator) + 0.5
    leaf = x.clone().requires_grad_()
    expected = torch.nn.functional.rms_norm(leaf, (16,), weight, 1e-5)
    expected.backward(grad_out)
    normed, squares = rms_norm(x, weight, 1e-5)
    assert torch.allclose(normed, expected, atol=1e-5)
    assert torch.allclose(rms_norm_from_mean_squares(x, squares, weight, 1e-5), normed, atol=1e-5)
    assert torch.allclose(
        rms_norm_backward(grad_out, x, weight, squares, 1e-5, residual), leaf.grad + residual, atol=1e-5
    )
    assert torch.allclose(rms_norm_backward_by_autograd(grad_out, x, weight, 1e-5), leaf.grad, atol=1e-5)


def test_opposite_rotation_restores_states():
    states = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    angle = torch.arange(20.0).view(5, 1, 4)
    rotated = states.clone()
    apply_rotary_in_place(rotated, angle.cos(), angle.sin())
    assert not torch.allclose(rotated, states, atol=0.1)
    apply_rotary_in_place(rotated, angle.cos(), -angle.sin())
    assert torch.allclose(rotated, states, atol=1e-5)
