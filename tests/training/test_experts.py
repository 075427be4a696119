"""Training bases with experts gives the right losses and gradients on both paths."""

import json

import pytest
import torch

from lora_chat.config.plan import PrecisionPlan, make_plan
from lora_chat.config.recipe import AdapterSection, BaseSection, DataSection, Recipe, TrainingSection
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.system.hardware import Hardware
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingRun

FP32 = PrecisionPlan(device="cpu", mode="none", double_quantization=True, dtype="float32")
CPU = Hardware("cpu", "test", 0, False, 1)


def make_rows():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 259, (length,), generator=generator).tolist() for length in (9, 14, 20, 11)]
    return [EncodedDialogue(row, [-100] * 4 + row[4:]) for row in ids]


def load_adapted(base, experts):
    section = AdapterSection(rank=4, dropout=0.0, experts=experts)
    return attach_adapter(load_base_model(base, FP32), section, seed=3)


def train(base, folder, fast, experts):
    folder.mkdir()
    settings = {"effective_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "fast_path": fast}
    training = TrainingSection(**settings, micro_batch_size=2, warmup_share=0.0)
    plan = make_plan(Recipe(data=DataSection(train="x"), training=training), CPU).training
    model = load_adapted(base, experts)
    train_sft(TrainingRun(model, load_tokenizer(base), make_rows(), [], plan, folder / "metrics.jsonl", bfloat16=False))
    return model, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def expected_first_step(base, experts):
    """Return the mean cross entropy of all supervised tokens, and the norm of its gradient, without a trainer."""
    model = load_adapted(base, experts).train()
    losses = []
    for row in make_rows():
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum"))
    loss = torch.stack(losses).sum() / sum(row.supervised_tokens for row in make_rows())
    loss.backward()
    return float(loss), float(torch.stack([p.grad.norm() for p in model.parameters() if p.requires_grad]).norm())


@pytest.mark.parametrize(("architecture", "experts"), [("qwen3_moe", True), ("mixtral", False), ("gpt_oss", True)])
def test_losses_and_gradients_are_right_on_both_paths(random_base, tmp_path, architecture, experts):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    loss, norm = expected_first_step(base, experts)
    weights = []
    for fast in (False, True):
        model, steps = train(base, tmp_path / str(fast), fast, experts)
        assert steps[0]["loss"] == pytest.approx(loss, abs=1e-5)
        assert steps[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
        assert steps[2]["loss"] < loss - 0.01
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.allclose(*weights, atol=2e-4)


def test_refuses_experts_whose_weights_the_model_reads_without_peft(random_base, tmp_path, monkeypatch):
    from peft.tuners.lora.layer import ParamWrapper

    base = find_base(BaseSection(name=str(random_base("qwen3_moe"))))
    monkeypatch.setattr(ParamWrapper, "forward", lambda self, *args: self.get_base_layer()(*args))
    with pytest.raises(IntegrityError, match=r"mlp\.experts.* has no gradient"):
        train(base, tmp_path / "run", fast=False, experts=True)
