"""Processes of a sharded base run the same number of passes, and idle ones change no gradient."""

import torch

from lora_chat.processes.group import ProcessGroup
from lora_chat.training import lock_step
from lora_chat.training.fast_path.lm_head_loss import LMHeadLoss, allocate_logit_buffers
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator
from lora_chat.training.lock_step import IDLE_COUNT, LockStep
from lora_chat.training.step_collator import PackedStepCollator


class _Group(ProcessGroup):
    def exchange(self, values):
        return [[float(value) for value in values], [5.0]]


def test_only_processes_of_a_sharded_base_add_passes(monkeypatch):
    assert LockStep(torch.nn.Linear(1, 1), _Group()).count_idle_passes(2) == 0
    monkeypatch.setattr(lock_step, "is_sharded", lambda model: True)
    assert LockStep(torch.nn.Linear(1, 1), _Group()).count_idle_passes(2) == 3
    assert LockStep(torch.nn.Linear(1, 1), _Group()).count_idle_passes(5) == 0


def test_idle_batch_is_the_shortest_supervised_dialogue_of_the_step():
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
        {"input_ids": [5, 6], "labels": [5, -100]},  # the first token is never predicted
        {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
    ]
    collator = PackedStepCollator(PackedBatchCollator(share_prefix=False), None, process=3, processes=4)
    step = collator(rows)
    assert step["micro_batches"] == []
    batch = LockStep.make_idle_batch(step, collator.micro_batch_collator)
    assert batch["input_ids"].tolist() == [[7, 8, 9]]
    assert batch["supervised"].tolist() == [0, 1]


def test_idle_loss_has_a_gradient_of_zero():
    hidden = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.ones(5, 4)
    loss = LMHeadLoss.apply(hidden, weight, torch.tensor([0, 1, 2]), IDLE_COUNT, allocate_logit_buffers(weight, 3))
    loss.backward()
    assert loss == 0
    assert torch.equal(hidden.grad, torch.zeros(3, 4))
