"""Held-out replies take at most a tenth of the planned training time."""

import numpy as np
import pytest

from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.data.lengths import DataLengths, RowLengths
from lora_chat.planning.evaluation_budget import choose_reply_count
from lora_chat.planning.phase_time import TimeEstimate
from lora_chat.system.hardware import Hardware

ROWS = RowLengths(*(np.full(200, n) for n in (50, 50, 10)))


def choose(replies, train_seconds, samples=3):
    recipe = Recipe.model_validate({"data": {"train": "a"}, "evaluation": {"replies": replies, "samples": samples}})
    plan = make_plan(recipe, Hardware("cpu", "a CPU", 2**33, True, 2))
    optional = 97 if replies == "auto" else 0
    data = DataLengths(ROWS, ROWS, (40,) * (100 if replies == "auto" else replies), 64, optional_prompts=optional)

    def predict(lengths):
        if train_seconds is None:
            return None
        batches = -(-len(lengths.prompt_tokens) // 40)
        seconds = {"train": train_seconds, "generate": 5.0 * batches}
        return {name: TimeEstimate(value, value, value) for name, value in seconds.items()}

    plan, lengths = choose_reply_count(plan, data, predict)
    assert len(lengths.prompt_tokens) == plan.evaluation.replies
    return plan.evaluation.replies


@pytest.mark.parametrize(
    ("train_seconds", "expected"), [(1000.0, 100), (100.0, 100), (60.0, 80), (49.0, 40), (0.0, 40), (None, 43)]
)
def test_auto_is_bounded_by_planned_time(train_seconds, expected):
    assert choose("auto", train_seconds) == expected


def test_a_number_is_not_changed():
    assert choose(250, 1.0) == 250
    assert choose(0, 1.0) == 0
