"""One training in 1 to 4 processes: the same dialogues in the same steps, and the same adapter but for rounding."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from ranks import RankError, run_ranks
from test_equivalence import BF16, ON_DEMAND, lora_weights, make_rows, train

from lora_chat.errors import NonFiniteError
from lora_chat.processes.group import current_group
from lora_chat.training.trainer import PackedSFTTrainer

pytestmark = pytest.mark.slow  # imports libraries in a server of processes

FAST, STOCK = {"attention": "packed"}, {"attention": "padded"}
CASES = {
    "fast path": FAST,
    "stock path": {**STOCK, "dropout": 0.3, "neftune_alpha": 5.0},
    "checkpointing": {**FAST, "dropout": 0.3, "gradient_checkpointing": 1, "micro_batch_tokens": 60},
    "4 bits and DoRA": {**FAST, "mode": "4bit", "hardware": BF16, "variant": "dora", "dropout": 0.3},
    "8 bits and rsLoRA": {**FAST, "mode": "8bit", "hardware": BF16, "variant": "rslora", "dropout": 0.3},
    "stock path, 4 bits": {**STOCK, "mode": "4bit", "hardware": BF16},
}
MAX_DIFFERENCE = {"none": 1e-5, "4bit": 0.03, "8bit": 0.03, "dropout": 1e-4}
"""Largest difference of a weight after 6 steps of up to 0.01 each; bases in bf16 round every product to 8 bits.

Adam divides by the size of a gradient. With dropout and noise some are nearly zero, so their rounding counts more:
measured 1.1e-5. Other random numbers change weights by the size of a step.
"""


def train_and_record(case, count, fault=None):
    """Train in this process. Return steps, losses, tokens, the dialogues of each step, and the weights."""
    order, folder = [], tempfile.TemporaryDirectory()
    stock = PackedSFTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        order.append((inputs["row_ids"].tolist(), inputs["row_lengths"].tolist()))
        loss = stock(self, model, inputs, *args, **kwargs)
        if fault and len(order) == 2 and current_group().rank.index == 1:
            fault(self, inputs)
        return loss

    PackedSFTTrainer.training_step = training_step
    try:
        with folder:
            path = Path(folder.name) / "run"
            settings = {"epochs": 2, "effective_batch_size": 6, **CASES[case]}
            model, report, losses = train(make_rows(count), path, **settings)
            tokens = [json.loads(line)["supervised_tokens"] for line in (path / "metrics.jsonl").open()]
    finally:
        PackedSFTTrainer.training_step = stock
    weights = {name: value.float().numpy() for name, value in lora_weights(model).items()}
    return {"steps": report.steps, "losses": losses, "tokens": tokens, "order": order}, weights


@pytest.fixture(scope="module")
def alone(cache_home):
    """Return the result of one process, by case."""
    results = {}

    def record(case):
        if case not in results:
            results[case] = run_ranks(1, train_and_record, case, 14)[0]
        return results[case]

    return record


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("fast path", 2),
        ("fast path", 3),
        ("stock path", 2),
        pytest.param("checkpointing", 4, marks=ON_DEMAND),
        pytest.param("4 bits and DoRA", 2, marks=ON_DEMAND),
        pytest.param("8 bits and rsLoRA", 3, marks=ON_DEMAND),
        pytest.param("stock path, 4 bits", 3, marks=ON_DEMAND),
    ],
)
def test_processes_train_the_same(alone, case, count):
    expected, expected_weights = alone(case)
    ranks = run_ranks(count, train_and_record, case, 14)
    mode = CASES[case].get("mode", "none")
    bound = "dropout" if mode == "none" and "dropout" in CASES[case] else mode
    for record, weights in ranks:
        assert {**record, "losses": []} == {**expected, "losses": []}
        assert record["losses"] == pytest.approx(expected["losses"], rel=1e-5 if mode == "none" else 1e-2)
        for name, values in weights.items():
            assert np.array_equal(values, ranks[0][1][name]), name
            assert np.abs(values - expected_weights[name]).max() <= MAX_DIFFERENCE[bound], name


def change_adapter(trainer, inputs):
    next(p for p in trainer.model.parameters() if p.requires_grad).data[0, 0] += 1e-6


def change_dialogues(trainer, inputs):
    inputs["row_ids"][0] += 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (change_adapter, "different adapters after step 2"),
        (change_dialogues, "different dialogues after step 2"),
    ],
)
def test_a_process_that_differs_ends_all(cache_home, fault, message):
    with pytest.raises(RankError, match=message) as error:
        run_ranks(2, train_and_record, "fast path", 14, fault)
    assert "IntegrityError" in str(error.value)


def overflow_in_the_second_process():
    """Train with an infinite gradient in one process's share of step 2. Return the error of this process."""
    stock, calls = PackedSFTTrainer._run_micro_batches, []

    def run_micro_batches(self, *args, **kwargs):
        loss = stock(self, *args, **kwargs)
        calls.append(0)
        if len(calls) == 3 and current_group().rank.index == 1:  # the first call is the memory check
            next(p for p in self.model.parameters() if p.grad is not None).grad[0, 0] = float("inf")
        return loss

    PackedSFTTrainer._run_micro_batches = run_micro_batches
    try:
        train_and_record("fast path", 14)
    except NonFiniteError as error:
        return str(error)
    finally:
        PackedSFTTrainer._run_micro_batches = stock


def test_an_infinite_gradient_of_one_process_ends_all_with_one_message(cache_home):
    first, second = run_ranks(2, overflow_in_the_second_process)
    assert first == second
    assert first.startswith("Step 2 has a non-finite gradient; the update was skipped.")
