"""After each step the processes compare what they trained, how they draw random numbers, and their adapters."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lora_chat.errors import IntegrityError
from lora_chat.processes.group import ProcessGroup
from lora_chat.processes.rank import Rank
from lora_chat.training.callbacks.agreement import StepAgreement
from lora_chat.training.step_randomness import StepRandomness
from lora_chat.training.stop_request import StopRequest

STEP = {"row_ids": [4, 5, 6, 7], "row_lengths": [2, 2], "row_labels": [-100, 5, 6, 7]}


class Pair(ProcessGroup):
    """The first of two processes; the other gives `values`."""

    rank = Rank(0, 2)
    values: list | None = None

    def exchange(self, values):
        self.sent = list(values)
        return [self.sent, self.values or self.sent]


def agree(values=None, dropout=0.1, seed=0, noise=None, weight=1.0, **step):
    """End a step and return the values that the process has sent."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Dropout(dropout))
    torch.nn.init.constant_(model[0].weight, weight)
    checksum = StepRandomness(model, seed, noise).checksum
    batch = {name: np.array(ids) for name, ids in (STEP | step).items()}
    group = Pair()
    group.values = values
    trainer = SimpleNamespace(model=model, step_batch=batch, randomness_checksum=checksum)
    StepAgreement(trainer, group, StopRequest()).on_step_end(None, SimpleNamespace(global_step=3), None)
    return group.sent


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"row_ids": [4, 5, 6, 8]}, "dialogues"),
        ({"row_lengths": [1, 3]}, "dialogues"),
        ({"row_labels": [-100, 5, -100, 7]}, "dialogues"),
        ({"seed": 1}, "random numbers"),
        ({"dropout": 0.2}, "random numbers"),
        ({"noise": 5.0}, "random numbers"),
        ({"weight": 1.0000001}, "adapters"),
    ],
)
def test_a_difference_ends_the_run_with_its_step(change, what):
    agree(agree())
    with pytest.raises(IntegrityError, match=f"different {what} after step 3"):
        agree(agree(**change))
