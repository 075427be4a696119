"""Each option of schedule, optimizer and loss does what its description says."""

import json
import math

import pytest
import torch
from test_equivalence import make_rows, train

from lora_chat.config.recipe import TrainingSection
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.training.fast_path.lm_head_loss import LMHeadLoss, allocate_logit_buffers
from lora_chat.training.trainer import PackedSFTTrainer

ROWS = make_rows(8)
STEPS = 12


@pytest.fixture
def optimizers(monkeypatch):
    """Return the parameter groups of each optimizer when it is created."""
    created = []
    stock = PackedSFTTrainer.create_optimizer

    def create(self, model=None):
        optimizer = stock(self, model)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            created.append({**group, "names": [names[parameter] for parameter in group["params"]]})
        return optimizer

    monkeypatch.setattr(PackedSFTTrainer, "create_optimizer", create)
    return created


def read_rates(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["learning_rate"] for row in rows if "loss" in row]


def test_rates_follow_warmup_steps_and_the_minimum(cache_home, tmp_path):
    settings = {"learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_steps": 2}
    train(ROWS, tmp_path / "run", epochs=STEPS, **settings)
    cosine = [1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * step / (STEPS - 2))) for step in range(STEPS - 2)]
    assert read_rates(tmp_path / "run") == pytest.approx([0.0, 5e-3, *cosine], rel=1e-6)


def test_rates_restart_at_the_peak_of_each_cycle(cache_home, tmp_path):
    train(ROWS, tmp_path / "run", epochs=STEPS, schedule="cosine_restarts", restart_cycles=3, warmup_share=0.0)
    cycle = [1e-2 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert read_rates(tmp_path / "run") == pytest.approx(cycle * 3, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_lora_plus_trains_b_by_the_ratio_and_keeps_both_schedules(cache_home, tmp_path, optimizers, optimizer):
    settings = {"lora_plus_ratio": 8.0, "adam_beta2": 0.95, "weight_decay": 0.01, "min_learning_rate": 1e-3}
    train(ROWS, tmp_path / "run", epochs=1, optimizer=optimizer, **settings)
    for_a, for_b = optimizers
    assert all(".lora_A." in name for name in for_a["names"]) and for_a["names"]
    assert all(".lora_B." in name for name in for_b["names"]) and len(for_b["names"]) == len(for_a["names"])
    assert (for_a["lr"], for_b["lr"]) == (1e-2, 8e-2)
    assert for_a["betas"] == for_b["betas"] == (0.9, 0.95)
    assert for_a["weight_decay"] == for_b["weight_decay"] == 0.01


def test_a_step_of_lora_plus_moves_b_by_the_ratio(cache_home, tmp_path):
    settings = {"epochs": 1, "learning_rate": 1e-3, "warmup_share": 0.0, "schedule": "constant"}
    plain, _, _ = train(ROWS, tmp_path / "plain", **settings)
    faster, _, _ = train(ROWS, tmp_path / "faster", lora_plus_ratio=16.0, **settings)
    for name, parameter in plain.named_parameters():
        other = faster.get_parameter(name)
        if "lora_B" in name:  # starts at zero, and the first step of Adam has the size of the rate
            assert torch.allclose(other, 16 * parameter, rtol=1e-3)
        elif "lora_A" in name:
            assert torch.equal(other, parameter)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_loss_and_gradient_of_the_fused_head_are_those_of_pytorch(smoothing):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(21, 8, generator=generator), torch.randn(40, 8, generator=generator)
    ids = torch.randint(0, 40, (21,), generator=generator)
    fused, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = LMHeadLoss.apply(fused, weight, ids, 7, allocate_logit_buffers(weight, 16), smoothing)
    expected = torch.nn.functional.cross_entropy(plain @ weight.T, ids, reduction="sum", label_smoothing=smoothing) / 7
    loss.backward()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(fused.grad, plain.grad, atol=1e-6)


def test_both_paths_smooth_labels_alike_and_validate_without(cache_home, tmp_path):
    settings = {"label_smoothing": 0.2, "epochs": 3, "micro_batch_size": 4, "warmup_share": 0.0}
    fast, _, fast_losses = train(ROWS, tmp_path / "fast", each_epoch=True, **settings)
    _, _, stock_losses = train(ROWS, tmp_path / "stock", fast_path=False, **settings)
    _, _, plain_losses = train(ROWS, tmp_path / "plain", **{**settings, "label_smoothing": 0.0})
    assert stock_losses == pytest.approx(fast_losses, abs=1e-4)
    assert plain_losses[-1] < fast_losses[-1] - 1e-3
    rows = [json.loads(line) for line in (tmp_path / "fast" / "metrics.jsonl").read_text().splitlines()]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert validation[-1] == pytest.approx(evaluate_loss(fast, ROWS[:2]), abs=1e-4)


@pytest.mark.parametrize("fast_path", [True, False])
def test_noise_changes_training_and_repeats_by_the_seed(cache_home, tmp_path, fast_path):
    settings = {"fast_path": fast_path, "micro_batch_size": 4, "epochs": 2, "warmup_share": 0.0}
    model, _, first = train(ROWS, tmp_path / "first", each_epoch=True, neftune_alpha=15.0, **settings)
    _, _, second = train(ROWS, tmp_path / "second", each_epoch=True, neftune_alpha=15.0, **settings)
    _, _, without = train(ROWS, tmp_path / "without", **settings)
    assert first == second
    assert first[0] != without[0]
    rows = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert validation[-1] == pytest.approx(evaluate_loss(model, ROWS[:2]), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"warmup_steps": 3, "warmup_share": 0.1}, "keep one"),
        ({"warmup_steps": 3, "warmup_share": 0.05}, "keep one"),
        ({"warmup_steps": 3, "max_steps": 3}, "leaves none"),
        ({"min_learning_rate": 2e-4}, "not below"),
        ({"min_learning_rate": 1e-5, "schedule": "linear"}, "belongs to the schedule cosine"),
        ({"restart_cycles": 2}, "belongs to the schedule cosine_restarts"),
        ({"lora_plus_ratio": 0.0}, "greater than 0"),
        ({"label_smoothing": 1.0}, "less than 1"),
    ],
)
def test_rejects_settings_that_exclude_each_other(settings, reason):
    with pytest.raises(ValueError, match=reason):
        TrainingSection(**settings)


def test_warmup_steps_survive_being_written_and_read():
    section = TrainingSection(warmup_steps=4)
    assert TrainingSection.model_validate(section.model_dump()) == section
    assert (section.warmup, section.warmup_share) == (4, None)
