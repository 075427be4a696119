"""Tests that faster steps and measurements do not change the result of training."""

import json
import os
from itertools import accumulate, chain

import pytest
import torch

from lora_chat.config.lora_variants import LORA_VARIANTS
from lora_chat.config.plan import make_plan, plan_precision
from lora_chat.config.recipe import (
    AdapterSection,
    BaseSection,
    DataSection,
    QuantizationSection,
    Recipe,
    TrainingSection,
)
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import NonFiniteError
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.system.hardware import Hardware
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingRun

FP32 = Hardware("cpu", "test", 0, False, 2)
BF16 = Hardware("cpu", "test", 0, True, 2)
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def make_rows(count, seed=0, shared=0):
    generator = torch.Generator().manual_seed(seed)
    prefix_ids = torch.randint(3, 259, (shared,), generator=generator).tolist()
    rows = []
    for i in range(count):
        ids = prefix_ids + torch.randint(3, 259, (8 + 5 * i % 17,), generator=generator).tolist()
        rows.append(EncodedDialogue(ids, [-100] * (shared + 4) + ids[shared + 4 :]))
    return rows


def train(
    rows,
    folder,
    mode="none",
    hardware=FP32,
    variant="lora",
    attention=None,
    each_epoch=False,
    poison=False,
    base="tiny-random",
    adjustable_settings=(),
    rank=4,
    dropout=0.0,
    **settings,
):
    base = find_base(BaseSection(name=str(base)))
    model = load_base_model(base, plan_precision(QuantizationSection(mode=mode), hardware))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # GPT-2's own dropout differs between two layouts of a batch
            module.p = 0.0
    adapted = attach_adapter(model, AdapterSection(rank=rank, variant=variant, dropout=dropout), seed=3)
    if poison:
        next(p for p in adapted.parameters() if p.requires_grad).data[0, 0] = float("nan")
    defaults = {"epochs": 3, "learning_rate": 1e-2, "effective_batch_size": 8}
    plan = make_plan(
        Recipe(data=DataSection(train="x"), training=TrainingSection(**{**defaults, **settings})), hardware
    ).training
    if attention:
        plan = plan.model_copy(update={"fast_path": attention == "packed"})
    folder.mkdir()
    report = train_sft(
        TrainingRun(
            model=adapted,
            tokenizer=load_tokenizer(base),
            train_rows=rows,
            validation_rows=rows[:2],
            plan=plan,
            metrics_path=folder / "metrics.jsonl",
            bfloat16=hardware.bfloat16,
            evaluate_each_epoch=each_epoch,
            adjustable_settings=adjustable_settings,
        )
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return adapted, report, [line["loss"] for line in lines if "loss" in line]


def lora_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_weights(left, right, tolerance):
    for name, value in lora_weights(left).items():
        assert torch.allclose(value, lora_weights(right)[name], atol=tolerance), name


@pytest.mark.parametrize("micro_batch_size", [slow(1), 2, slow(4)])
def test_accumulation_equals_one_large_batch(cache_home, tmp_path, micro_batch_size):
    rows = make_rows(16)
    reference, _, losses = train(rows, tmp_path / "reference", micro_batch_size=8)
    split, _, other_losses = train(rows, tmp_path / "split", micro_batch_size=micro_batch_size)
    assert other_losses == pytest.approx(losses, abs=1e-4)
    assert_same_weights(reference, split, 2e-4)


@pytest.mark.parametrize("mode", ["4bit", slow("none")])
def test_8_bit_optimizer_learns_nearly_the_same(cache_home, tmp_path, mode):
    rows = make_rows(16)
    options = {"mode": mode, "hardware": BF16, "rank": 64}  # bitsandbytes keeps fewer than 4,096 weights in fp32
    _, _, losses = train(rows, tmp_path / "reference", **options)
    _, _, small_losses = train(rows, tmp_path / "small", optimizer="adamw_8bit", **options)
    assert small_losses == pytest.approx(losses, abs=0.05)
    assert small_losses != losses
    assert small_losses[-1] < small_losses[0] - 0.1


@pytest.mark.parametrize("tokens", [slow(1), 60])
@pytest.mark.parametrize("shared", [slow(0), 20])
def test_token_budget_does_not_change_the_result(cache_home, tmp_path, tokens, shared):
    rows = make_rows(16, shared=shared)
    reference, report, losses = train(rows, tmp_path / "reference", micro_batch_tokens=100_000)
    split, other_report, other_losses = train(rows, tmp_path / "split", micro_batch_tokens=tokens)
    assert other_losses == pytest.approx(losses, abs=1e-4)
    assert_same_weights(reference, split, 2e-4)
    assert report.supervised_tokens == other_report.supervised_tokens
    assert report.supervised_tokens == 3 * sum(sum(label != -100 for label in row.labels[1:]) for row in rows)


@pytest.mark.parametrize("gradient_checkpointing", [slow(True), 1])
@pytest.mark.parametrize("attention", ["packed", slow("padded")])
def test_gradient_checkpointing_gives_identical_weights(cache_home, tmp_path, gradient_checkpointing, attention):
    rows = make_rows(8, shared=12)
    stored, _, losses = train(rows, tmp_path / "stored", attention=attention, micro_batch_size=4)
    recomputed, _, recomputed_losses = train(
        rows,
        tmp_path / "recomputed",
        attention=attention,
        micro_batch_size=4,
        gradient_checkpointing=gradient_checkpointing,
    )
    assert recomputed_losses == losses
    assert_same_weights(stored, recomputed, 0.0)


@pytest.mark.parametrize("shared", [slow(0), 20])
def test_packed_batch_equals_padded_rows(cache_home, tmp_path, shared):
    rows = make_rows(16, shared=shared)
    packed, _, losses = train(rows, tmp_path / "packed", attention="packed", micro_batch_size=4)
    padded, _, other_losses = train(rows, tmp_path / "padded", attention="padded", micro_batch_size=4)
    assert other_losses == pytest.approx(losses, abs=1e-4)
    assert_same_weights(packed, padded, 2e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma", "phi", "gpt2"])
def test_packed_attention_equals_separate_dialogues(architecture, random_base):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    model = load_base_model(base, plan_precision(QuantizationSection(mode="none"), FP32)).eval()
    rows = make_rows(4)
    separate_logits = [model(input_ids=torch.tensor([row.input_ids])).logits[0] for row in rows]
    lengths = [len(row.input_ids) for row in rows]
    cu_seqlens = (0, *accumulate(lengths))
    model.set_attn_implementation(register_packed_attention())
    packed_logits = model(
        input_ids=torch.tensor([list(chain.from_iterable(row.input_ids for row in rows))]),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        packed_cu_seqlens=cu_seqlens,
        use_cache=False,
    ).logits[0]
    assert torch.allclose(packed_logits, torch.cat(separate_logits), atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", slow("qwen3"), slow("gemma")])
def test_varlen_attention_trains_the_same_adapter_as_trl(varlen, random_base, tmp_path, architecture):
    """Fused layers (llama, qwen3) and the registered attention function (gemma), with a shared prefix."""
    rows = make_rows(8, shared=12)
    settings = {"base": random_base(architecture), "epochs": 3}
    fast, _, losses = train(rows, tmp_path / "fast", micro_batch_tokens=150, **settings)
    stock, _, other_losses = train(rows, tmp_path / "stock", attention="padded", micro_batch_size=4, **settings)
    assert losses == pytest.approx(other_losses, abs=1e-4)
    assert_same_weights(fast, stock, 2e-4)


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [
        pytest.param(name, mode, marks=[] if name == "llama" or mode == "4bit" else ON_DEMAND)
        for name in ("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2")
        for mode in ("none", "4bit", "8bit")
    ],
)
@pytest.mark.slow
def test_fast_path_trains_the_same_adapter_as_trl(random_base, tmp_path, architecture, mode):
    """20 steps with weight decay, clipping and a schedule; some dialogues share a prefix."""
    settings = {"mode": mode, "base": random_base(architecture), "epochs": 10, "max_steps": 20, "learning_rate": 3e-3}
    rows = make_rows(11, shared=12) + make_rows(5, seed=1)
    fast, _, losses = train(rows, tmp_path / "fast", micro_batch_tokens=90, **settings)
    stock, _, other_losses = train(rows, tmp_path / "stock", attention="padded", micro_batch_size=4, **settings)
    # LLM.int8 rounds by the largest activation of a batch, and batches differ.
    tolerance = 2e-2 if mode == "8bit" else 1e-3
    assert len(losses) == 20
    assert losses == pytest.approx(other_losses, rel=tolerance)
    left, right = (torch.cat([w.flatten() for w in lora_weights(m).values()]) for m in (fast, stock))
    assert (left - right).norm() / right.norm() < (0.2 if mode == "8bit" else 0.02)


def test_same_seed_gives_identical_weights(cache_home, tmp_path):
    rows = make_rows(12)
    first, _, _ = train(rows, tmp_path / "first", mode="4bit", hardware=BF16)
    second, _, _ = train(rows, tmp_path / "second", mode="4bit", hardware=BF16)
    other, _, _ = train(rows, tmp_path / "other", mode="4bit", hardware=BF16, seed=1)
    assert_same_weights(first, second, 0.0)
    with pytest.raises(AssertionError):
        assert_same_weights(first, other, 0.0)


def test_evaluation_does_not_change_4_bit_gradients(cache_home, tmp_path):
    """On some CPUs, bitsandbytes repacks weights at the first evaluation, after which gradients are silently zero."""
    rows = make_rows(12)
    base = find_base(BaseSection(name="tiny-random"))
    precision = plan_precision(QuantizationSection(mode="4bit"), BF16)
    gradients = []
    for evaluated in (False, True):
        model = attach_adapter(load_base_model(base, precision), AdapterSection(rank=4), seed=3)
        if evaluated:
            evaluate_loss(model, rows)
        model.train()
        ids = torch.tensor([rows[0].input_ids])
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert any(g.abs().max() > 0 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_records_validation_each_epoch_without_changing_training(cache_home, tmp_path):
    rows = make_rows(12)
    plain, _, _ = train(rows, tmp_path / "plain", mode="4bit", hardware=BF16)
    evaluated_model, _, _ = train(rows, tmp_path / "evaluated", mode="4bit", hardware=BF16, each_epoch=True)
    assert_same_weights(plain, evaluated_model, 0.0)
    lines = [json.loads(line) for line in (tmp_path / "evaluated" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4, 6]


@pytest.mark.parametrize("variant", [slow(v.name) if v.peft_argument else v.name for v in LORA_VARIANTS])
@pytest.mark.parametrize("mode", ["none", slow("4bit")])
def test_every_variant_learns(cache_home, tmp_path, variant, mode):
    rows = make_rows(8)
    _, report, losses = train(rows, tmp_path / "run", mode=mode, hardware=BF16, variant=variant, epochs=6)
    assert report.steps == report.planned_steps == 6
    assert losses[-1] < losses[0] - 0.05


def test_non_finite_training_stops_with_advice(cache_home, tmp_path):
    rows = make_rows(8)
    with pytest.raises(NonFiniteError, match=r"Step \d+ has a non-finite loss.*\n.*learning_rate"):
        train(rows, tmp_path / "run", poison=True)


@pytest.mark.parametrize("mode", ["none", "4bit", "8bit"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_fused_lora_equals_peft(random_base, architecture, mode):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    model = attach_adapter(
        load_base_model(base, plan_precision(QuantizationSection(mode=mode), FP32)), AdapterSection(rank=4), seed=3
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1
    model.train()
    ids = torch.tensor([row.input_ids[:8] for row in make_rows(3)])

    def gradients():
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    stock_loss, stock = gradients()
    with fused_lora(model) as covered:
        fused_loss, fused = gradients()
        assert covered == sum("lora_A" in name for name in stock) > 0
    assert fused_loss == pytest.approx(stock_loss, abs=1e-5)
    for name, gradient in stock.items():
        assert torch.allclose(gradient, fused[name], atol=1e-5), name
    assert gradients()[0] == stock_loss  # PEFT's forward is restored


@pytest.mark.parametrize(("variant", "dropout"), [("dora", 0.0), ("lora", 0.1)])
def test_fused_lora_skips_uncovered_layers(random_base, variant, dropout):
    base = find_base(BaseSection(name=str(random_base("llama"))))
    adapter = AdapterSection(rank=4, variant=variant, dropout=dropout)
    model = attach_adapter(load_base_model(base, plan_precision(QuantizationSection(mode="none"), FP32)), adapter)
    with fused_lora(model) as covered:
        assert covered == 0
