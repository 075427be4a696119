"""Tests that wrong gradients are found before training, and that right ones pass in every precision and variant."""

import pytest
import torch

from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.recipe import AdapterSection, BaseSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.training.fast_path import check_gradients
from lora_chat.training.fast_path.attention import backends, cpu, interface
from lora_chat.training.fast_path.layers import attention_block
from lora_chat.training.fast_path.layers.lora_group import LoraGroup
from lora_chat.training.fast_path.select import find_fast_path

pytestmark = pytest.mark.slow  # many models are loaded

IDS = [3 + (7 * i * i) % 250 for i in range(700)]


def load_model(folder, mode="none", dtype="float32", **adapter):
    precision = PrecisionPlan(device="cpu", mode=mode, double_quantization=True, dtype=dtype)
    model = load_base_model(find_base(BaseSection(name=str(folder))), precision)
    return attach_adapter(model, AdapterSection(rank=4, **adapter), seed=3)


@pytest.fixture
def long_samples(monkeypatch):
    """Compare a long dialogue on a CPU too."""
    monkeypatch.setattr(check_gradients, "_MAX_LONG_TOKENS", {"cpu": 700})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", ["none", "4bit", "8bit"])
def test_right_gradients_pass_in_every_precision(random_base, long_samples, mode, dtype):
    fast_path = find_fast_path(load_model(random_base("llama"), mode, dtype), IDS[:48], IDS)
    assert fast_path.fused
    assert fast_path.head
    assert fast_path.notes == ()


@pytest.mark.parametrize("adapter", [{"variant": "dora"}, {"variant": "rslora"}, {"dropout": 0.3}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_gradients_pass_for_every_adapter(random_base, long_samples, adapter, dtype):
    fast_path = find_fast_path(load_model(random_base("llama"), "none", dtype, **adapter), IDS[:48], IDS)
    assert fast_path.packed_collator
    assert not any("gradient" in note for note in fast_path.notes)


@pytest.mark.parametrize("architecture", ["gemma2", "phi", "gpt2"])
def test_gradients_are_checked_where_the_head_or_the_layers_are_the_models(random_base, monkeypatch, architecture):
    monkeypatch.setattr(check_gradients, "_fast_loss", lambda model, *_: 0 * next(model.parameters()).sum())
    model = load_model(random_base(architecture))
    with pytest.raises(RuntimeError, match="grad"):  # the loss does not depend on the adapter
        find_fast_path(model, IDS[:48])


def scale_gradient_of_a(monkeypatch):
    backward = LoraGroup.backward

    def wrong(self, *args):
        grad_x, gradients = backward(self, *args)
        count = len(gradients) // 2
        return grad_x, [*(-3 * g for g in gradients[:count]), *gradients[count:]]

    monkeypatch.setattr(LoraGroup, "backward", wrong)


def scale_attention_of_one_layer(monkeypatch, module):
    calls = []

    def wrong(*args):
        calls.append(args)
        output, saved = backends.attention_forward(*args)
        return (output * 2 if len(calls) % 2 == 0 else output), saved

    monkeypatch.setattr(module, "attention_forward", wrong)


def rotate_only_early_positions(monkeypatch):
    rotate = attention_block.apply_rotary_in_place

    def wrong(states, cos, sin):
        rotate(states[:512], cos[:512], sin[:512])

    monkeypatch.setattr(attention_block, "apply_rotary_in_place", wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "plant",
    [
        scale_gradient_of_a,
        lambda monkeypatch: scale_attention_of_one_layer(monkeypatch, attention_block),
        rotate_only_early_positions,
    ],
    ids=["gradient of A", "attention of one layer", "late positions"],
)
def test_fault_of_the_fused_layers_turns_them_off(random_base, long_samples, monkeypatch, plant, dtype):
    plant(monkeypatch)
    fast_path = find_fast_path(load_model(random_base("llama"), "none", dtype), IDS[:48], IDS)
    assert not fast_path.fused
    assert fast_path.packed_collator
    (note,) = fast_path.notes
    assert "Fused layers are off, because their gradients differ from the model's (model.layers." in note


def test_fault_of_one_gradient_is_named(random_base, monkeypatch):
    def plant(self, *args):
        grad_x, gradients = backward(self, *args)
        if self is groups[1]:
            gradients[1] = gradients[1] * 2
        return grad_x, gradients

    backward, create, groups = LoraGroup.backward, LoraGroup.__init__, []
    monkeypatch.setattr(LoraGroup, "backward", plant)
    monkeypatch.setattr(LoraGroup, "__init__", lambda self, layers: (groups.append(self), create(self, layers))[1])
    (note,) = find_fast_path(load_model(random_base("llama")), IDS[:48], IDS).notes
    assert "model.layers.0.self_attn.o_proj.lora_B" in note


def test_fault_of_packed_attention_turns_the_fast_path_off(random_base, long_samples, monkeypatch):
    """The window is ignored in long sequences only, with and without fused layers."""
    mask = cpu.causal_mask

    def wrong(tile, copies, dtype, window, device):
        return mask(tile, copies, dtype, None if tile[1] > 400 else window, device)

    model = load_model(random_base("mistral"))
    model.config.sliding_window = 64
    before = model.config._attn_implementation
    assert find_fast_path(model, IDS[:48], IDS).notes == ()
    model.set_attn_implementation(before)
    monkeypatch.setattr(cpu, "causal_mask", wrong)
    fast_path = find_fast_path(model, IDS[:48], IDS)
    assert fast_path.packed_collator is None
    assert not fast_path.fused
    (note,) = fast_path.notes
    assert "The fast path is off, because its gradients differ" in note
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_check_restores_everything(random_base, long_samples, monkeypatch, fails, trained):
    model = load_model(random_base("llama"), dropout=0.1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
            if trained:  # as in a resumed run
                parameter.data.normal_()
    before = [(p.detach().clone(), p.grad) for p in model.parameters()]
    settings = [(type(m), m.training, "forward" in vars(m)) for m in model.modules()]
    if fails:

        def fail(*args):
            torch.rand(1)
            raise ArithmeticError

        monkeypatch.setattr(check_gradients, "_relative_errors", fail)
    random_state = torch.get_rng_state()
    if fails:
        with pytest.raises(ArithmeticError):
            find_fast_path(model, IDS[:48], IDS)
    else:
        find_fast_path(model, IDS[:48], IDS)
    for parameter, (value, gradient) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is gradient
    assert settings == [(type(m), m.training, "forward" in vars(m)) for m in model.modules()]
    assert torch.equal(torch.get_rng_state(), random_state)


def test_long_sample_is_shortened_if_memory_runs_out(random_base, long_samples, monkeypatch):
    lengths = []
    compute_loss = check_gradients._fast_loss

    def limited(model, candidate, rows):
        lengths.append(max(len(row["input_ids"]) for row in rows))
        if lengths[-1] > 400:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute_loss(model, candidate, rows)

    monkeypatch.setattr(check_gradients, "_fast_loss", limited)
    assert find_fast_path(load_model(random_base("llama")), IDS[:48], IDS).notes == ()
    assert lengths == [48, 700, 48, 350]


def test_recomputation_gives_the_same_gradients(random_base, long_samples):
    check = check_gradients.GradientCheck(load_model(random_base("llama")), IDS[:48], IDS, "sdpa")
    check._samples[1] = check_gradients._Sample(check._samples[1].rows, recomputed=True)
    interface.register_packed_attention()
    candidate = check_gradients.FastPathParts(None, None, fused=False)
    assert check.find_wrong_gradient(candidate) is None
