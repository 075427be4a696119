"""A run that goes on from a checkpoint ends where an undisturbed one does, to the byte."""

import json

import pytest
import torch
from test_equivalence import make_rows

from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.planning.hardware import Hardware
from lora_chat.planning.plan import make_plan, make_precision
from lora_chat.planning.recipe import AdapterSection, BaseSection, CheckpointSection, QuantizationSection, Recipe
from lora_chat.training.checkpoints import find_newest
from lora_chat.training.committing import Keeping
from lora_chat.training.sft import train_sft
from lora_chat.training.trainer import StepTrainer

FP32 = Hardware("cpu", "test", 0, False, 2)
STEPS = 9


class Killed(Exception):
    pass


def run(folder, rows, resume=False, kill_at=None, monkeypatch=None, dropout=0.1, **training):
    folder.mkdir(exist_ok=True)
    base = find_base(BaseSection(name="tiny-random"))
    model = load_base_model(base, make_precision(QuantizationSection(mode="none"), FP32))
    model = attach_adapter(model, AdapterSection(rank=4, dropout=dropout), seed=3)
    settings = {"epochs": 3, "learning_rate": 1e-2, "effective_batch_size": 8, "micro_batch_tokens": 90} | training
    plan = make_plan(Recipe.model_validate({"data": {"train": "x"}, "training": settings}), FP32)
    newest = find_newest(folder / "checkpoints")[0] if resume else None
    calls = []
    stock = StepTrainer.training_step

    def training_step(self, *args, **kwargs):
        calls.append(0)
        if kill_at is not None and len(calls) > kill_at:
            raise Killed
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(StepTrainer, "training_step", training_step)
    from transformers import AutoTokenizer

    try:
        train_sft(
            model,
            AutoTokenizer.from_pretrained(base.folder),
            rows,
            (),
            plan.training,
            bfloat16=False,
            each_epoch=False,
            metrics=folder / "metrics.jsonl",
            keeping=Keeping(folder / "checkpoints", CheckpointSection(every_steps=1), {"a": 1}, newest),
        )
    finally:
        monkeypatch.setattr(StepTrainer, "training_step", stock)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
    return weights, rows


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kill_at", range(1, STEPS))
def test_every_step_of_three_epochs(cache_home, tmp_path, monkeypatch, kill_at, dropout):
    rows = make_rows(22)
    whole, metrics = run(tmp_path / "whole", rows, monkeypatch=monkeypatch, dropout=dropout)
    assert len([row for row in metrics if "loss" in row]) == STEPS
    with pytest.raises(Killed):
        run(tmp_path / "cut", rows, kill_at=kill_at, monkeypatch=monkeypatch, dropout=dropout)
    again, metrics_again = run(tmp_path / "cut", rows, resume=True, monkeypatch=monkeypatch, dropout=dropout)
    assert metrics_again == metrics
    assert all(torch.equal(weight, again[name]) for name, weight in whole.items())
