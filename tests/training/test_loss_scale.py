"""Tests of the rule for steps that the gradient scaler skips, on a CPU; tests/cuda trains in fp16."""

import json
import math

import pytest
import torch
from test_equivalence import make_rows, train
from torch.amp import GradScaler

from lora_chat.errors import NonFiniteError
from lora_chat.training.loss_scale import MAX_SKIPPED_IN_A_ROW, LossScale
from lora_chat.training.trainer import PackedSFTTrainer


def collapses_after(scaler, overflows):
    """Return the number of steps that are accepted before the scale has collapsed; None if it does not."""
    loss_scale = LossScale(scaler)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for step, overflow in enumerate(overflows):
        scaler.scale(parameter.sum()).backward()
        if overflow:
            parameter.grad.fill_(math.inf)
        loss_scale.record_step(skipped=overflow)
        if loss_scale.has_collapsed:
            return step
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert loss_scale.skipped_steps == sum(overflows)
    return None


def test_accepts_skipped_steps_while_the_scale_falls():
    assert collapses_after(GradScaler("cpu"), [True] * 6 + [False] * 5 + [True] * 3 + [False]) is None


def test_refuses_too_many_skipped_steps_in_a_row():
    assert collapses_after(GradScaler("cpu"), [False, *[True] * 20]) == 1 + MAX_SKIPPED_IN_A_ROW


def test_refuses_a_scale_below_one():
    assert collapses_after(GradScaler("cpu", init_scale=8.0), [True, False] * 10) == 6  # 8, 4, 2 and then 1


@pytest.mark.parametrize(
    ("counts", "skipped", "in_a_row"),
    [([], 0, 0), ([0, 0], 0, 0), ([1], 1, 1), ([1, 2, 3], 3, 3), ([1, 1, 2, 3], 3, 2), ([1, 2, 2], 2, 0)],
)
def test_resumed_training_continues_the_counts(counts, skipped, in_a_row):
    rows = [{"step": number, "skipped_steps": count} for number, count in enumerate(counts)]
    rows = [copy for row in rows for copy in (row, {"step": row["step"], "validation_loss": 1.0})]
    loss_scale = LossScale(GradScaler("cpu"), rows)
    assert (loss_scale.skipped_steps, loss_scale.skipped_in_a_row) == (skipped, in_a_row)


@pytest.fixture
def scaled(monkeypatch):
    """Train with a gradient scaler on a CPU, where accelerate has none, and let gradients of chosen steps overflow."""

    def prepare(overflows, init_scale=2.0**16):
        stock_init, stock_run, calls = PackedSFTTrainer.__init__, PackedSFTTrainer._run_micro_batches, []

        def init(self, **kwargs):
            stock_init(self, **kwargs)
            accelerator = self.accelerator
            accelerator.scaler = GradScaler("cpu", init_scale=init_scale)

            def unscale_gradients(optimizer=None):
                for wrapped in accelerator._optimizers:
                    accelerator.scaler.unscale_(wrapped.optimizer)

            accelerator.unscale_gradients = unscale_gradients

        def run_micro_batches(self, *args, **kwargs):
            loss = stock_run(self, *args, **kwargs)
            calls.append(0)
            if len(calls) - 1 in overflows:  # the first call is the memory check, so steps begin with 1
                next(p for p in self.model.parameters() if p.grad is not None).grad[0, 0] = math.inf
            return loss

        monkeypatch.setattr(PackedSFTTrainer, "__init__", init)
        monkeypatch.setattr(PackedSFTTrainer, "_run_micro_batches", run_micro_batches)

    return prepare


def read_rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_skipped_step_changes_only_itself(cache_home, tmp_path, scaled, caplog):
    """The first step has the learning rate 0, so that skipping it may only change Adam's moments."""
    caplog.set_level("INFO")
    rows = make_rows(16)
    _, _, losses = train(rows, tmp_path / "plain")
    scaled({0, 3, 4})
    model, _, scaled_losses = train(rows, tmp_path / "scaled")
    metrics = read_rows(tmp_path / "scaled")
    assert [row["skipped_steps"] for row in metrics] == [0, 0, 1, 2, 2, 2]
    assert [row["loss_scale"] for row in metrics] == [65536.0, 65536.0, 32768.0, 16384.0, 16384.0, 16384.0]
    assert [row["gradient_norm"] is None for row in metrics] == [False, False, True, True, False, False]
    assert scaled_losses[:3] == losses[:3]  # powers of two change no digit
    assert scaled_losses[3:] != losses[3:] and scaled_losses[-1] < losses[0]
    plain = read_rows(tmp_path / "plain")
    assert [row["learning_rate"] for row in metrics] == [row["learning_rate"] for row in plain]
    assert [row["gradient_norm"] for row in metrics[:2]] == [row["gradient_norm"] for row in plain[:2]]
    assert "loss_scale" not in plain[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "fp16: 2 of 6 steps were skipped" in caplog.text


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_learning_rate_follows_the_plan_after_a_skipped_step(cache_home, tmp_path, scaled, optimizer):
    options = {"optimizer": optimizer, "warmup_share": 0.0}
    train(make_rows(16), tmp_path / "plain", **options)
    scaled({1, 3})
    train(make_rows(16), tmp_path / "scaled", **options)
    rates = [[row["learning_rate"] for row in read_rows(tmp_path / name)] for name in ("plain", "scaled")]
    assert rates[0] == rates[1] and len(set(rates[0])) == 6


def test_refuses_overflow_that_lasts(cache_home, tmp_path, scaled):
    scaled(set(range(3, 99)))
    with pytest.raises(NonFiniteError) as caught:
        train(make_rows(16), tmp_path / "run", epochs=20)
    message = str(caught.value)
    assert "Step 13 has a non-finite gradient, like the 10 before it" in message
    assert "quantization.dtype=float32" in message and "learning_rate=0.0025" in message
    assert len(read_rows(tmp_path / "run")) == 12


def test_refuses_a_training_that_skipped_all_steps(cache_home, tmp_path, scaled):
    scaled(set(range(99)))
    with pytest.raises(NonFiniteError, match="All 6 steps have non-finite gradients"):
        train(make_rows(16), tmp_path / "run")


def test_refuses_a_non_finite_loss_in_spite_of_the_scaler(cache_home, tmp_path, scaled):
    scaled(set())
    with pytest.raises(NonFiniteError, match="Step 1 has a non-finite loss; the update was skipped"):
        train(make_rows(8), tmp_path / "run", poison=True)
