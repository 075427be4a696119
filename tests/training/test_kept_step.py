"""The best measured step is kept, byte for byte, and a resumed run keeps the same one."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from lora_chat.config.plan import make_plan, plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, CheckpointSection, QuantizationSection, Recipe
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import IntegrityError
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.models.adapter import attach_adapter, write_peft_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.runs.checkpoints import find_newest_checkpoint
from lora_chat.runs.validation_log import MeasuredLoss, read_validation_log, write_validation_log
from lora_chat.system.hardware import Hardware
from lora_chat.training import measured_steps
from lora_chat.training.callbacks import validation
from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
from lora_chat.training.kept_step import MeasuredStep, count_without_improvement, update_candidates
from lora_chat.training.measure_validation import group_rows
from lora_chat.training.row_scores import RowScores
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingRun

BF16 = Hardware("cpu", "test", 0, True, 2)
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
STEPS = 12
OVERFIT = {"epochs": STEPS / 2, "learning_rate": 5e-2, "effective_batch_size": 3, "schedule": "constant"}


def make_rows(count, seed, share):
    """Return rows whose replies have one of four tokens with this share, and the others with equal shares."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        prompt = torch.randint(3, 259, (4,), generator=generator).tolist()
        shares = torch.tensor([share, *3 * [(1 - share) / 3]])
        reply = (40 + 10 * torch.multinomial(shares, 12 + i % 5, True, generator=generator)).tolist()
        rows.append(EncodedDialogue(prompt + reply, [-100] * 4 + reply))
    return rows


TRAIN, HELD_OUT = make_rows(6, 2, 0.97), make_rows(9, 1, 0.4)
"""Rows to train on and rows with other shares of the same tokens, whose loss falls at first and then rises."""


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def tiny(cache_home):
    base = find_base(BaseSection(name="tiny-random"))
    return base, load_tokenizer(base)


def train(
    tiny,
    folder,
    *,
    resume=False,
    rows=HELD_OUT,
    every_steps=2,
    each_epoch=False,
    hardware=BF16,
    dropout=0.2,
    **settings,
):
    """Train in a folder. Return the result, the saved adapter's bytes and the loss of the saved adapter."""
    base, tokenizer = tiny
    model = load_base_model(base, plan_precision(QuantizationSection(mode="none"), hardware))
    model = attach_adapter(model, AdapterSection(rank=8, dropout=dropout), seed=3)
    recipe = Recipe.model_validate({"data": {"train": "x"}, "training": {"warmup_share": 0.0, **OVERFIT, **settings}})
    folder.mkdir(exist_ok=True)
    newest, _ = find_newest_checkpoint(folder / "checkpoints") if resume else (None, [])
    result = train_sft(
        TrainingRun(
            model=model,
            tokenizer=tokenizer,
            train_rows=TRAIN,
            validation_rows=rows,
            plan=make_plan(recipe, hardware).training,
            metrics_path=folder / "metrics.jsonl",
            bfloat16=hardware.bfloat16,
            evaluate_each_epoch=each_epoch,
            evaluate_every_steps=every_steps,
            checkpoint_policy=CheckpointPolicy(folder / "checkpoints", CheckpointSection(), {"a": 1}, newest),
        )
    )
    write_peft_adapter(model, folder / "adapter")
    return result, (folder / "adapter" / "adapter_model.safetensors").read_bytes(), evaluate_loss(model, rows)


def read_losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}


@pytest.fixture(scope="module")
def best(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "run"
    return folder, *train(tiny, folder)


def test_an_overfitted_run_keeps_its_best_step_and_says_so(tiny, best):
    folder, result, _, loss = best
    losses = read_losses(folder)
    assert list(losses) == [2, 4, 6, 8, 10, 12]
    step = result.kept_step.step
    assert step < STEPS == result.steps
    assert losses[step] < losses[STEPS] - 0.02
    assert losses[step] == pytest.approx(loss, abs=5e-3)  # the adapter was rounded to bf16
    assert f"{losses[step]:.3f}" in result.kept_step.reason
    assert f"the last step had {losses[STEPS]:.3f} (+" in result.kept_step.reason
    assert "standard errors" in result.kept_step.reason


def test_the_kept_adapter_has_the_bytes_of_a_run_that_ends_there(tiny, best, tmp_path):
    _, result, adapter, _ = best
    step = result.kept_step.step
    _, last, _ = train(tiny, tmp_path / "last", every_steps=None, keep="last", max_steps=step)
    assert last == adapter


@ON_DEMAND
def test_the_last_step_is_kept_on_request_and_with_few_rows(tiny, best, tmp_path):
    result, adapter, _ = train(tiny, tmp_path / "last", keep="last")
    assert (result.kept_step.step, read_losses(tmp_path / "last")) == (STEPS, read_losses(best[0]))
    assert "training.keep is last; step" in result.kept_step.reason
    assert not (tmp_path / "last" / "candidates").exists()
    few, other, _ = train(tiny, tmp_path / "few", rows=HELD_OUT[:7])
    assert "has 7 rows, and 8 are needed" in few.kept_step.reason
    assert other == adapter != best[2]


@ON_DEMAND
def test_padded_rows_give_the_same_choice(tiny, tmp_path):
    exact = {"hardware": Hardware("cpu", "test", 0, False, 2), "dropout": 0.0, "learning_rate": 5e-3}
    packed, _, _ = train(tiny, tmp_path / "packed", micro_batch_tokens=40, **exact)
    padded, _, loss = train(tiny, tmp_path / "padded", fast_path=False, micro_batch_size=3, **exact)
    losses = [read_losses(tmp_path / name) for name in ("packed", "padded")]
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), abs=1e-3)
    assert packed.kept_step.step == padded.kept_step.step
    assert losses[1][padded.kept_step.step] == pytest.approx(loss, abs=1e-5)
    accuracies = [
        [row.token_accuracy for row in read_validation_log(tmp_path / name / "validations.json").rows]
        for name in ("packed", "padded")
    ]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


def test_early_stopping_counts_measurements_without_improvement(tiny, best, tmp_path):
    result, adapter, _ = train(tiny, tmp_path / "early", early_stopping=2)
    lowest = min(read_losses(best[0]), key=read_losses(best[0]).get)
    assert (result.steps, result.planned_steps) == (lowest + 4, STEPS)
    assert result.is_complete
    assert adapter == best[2]
    assert "stopped after 2 measurements without an improvement" in result.kept_step.reason
    again, same, _ = train(tiny, tmp_path / "early", early_stopping=2, resume=True)
    assert (again.steps, again.kept_step, same) == (result.steps, result.kept_step, adapter)


def fail_at(owner, name, call_number, patch, *, after=False):
    """Make one call of a function raise Killed, before or after its work."""
    stock, calls = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        calls.append(0)
        if len(calls) == call_number and not after:
            raise Killed
        result = stock(*args, **kwargs)
        if len(calls) == call_number:
            raise Killed
        return result

    patch.setattr(owner, name, wrapper)


POINTS = {
    "in a measurement": (validation.ValidationCallback, "_check_stop", 5, False),
    "after the copy": (measured_steps.StepCopies, "write", 2, True),
    "after the log": (measured_steps, "write_validation_log", 5, True),
    "before copies are deleted": (measured_steps.StepCopies, "delete_except", 6, False),
    "after copies were deleted": (measured_steps.StepCopies, "delete_except", 7, True),
}


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=[] if point == "after the log" else ON_DEMAND) for point in POINTS]
)
def test_an_interrupted_run_keeps_the_same_step(tiny, best, tmp_path, point):
    folder, result, adapter, _ = best
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        owner, name, number, after = POINTS[point]
        fail_at(owner, name, number, patch, after=after)
        train(tiny, tmp_path / "run")
    resumed, same, _ = train(tiny, tmp_path / "run", resume=True)
    assert (resumed.kept_step, same) == (result.kept_step, adapter)
    assert read_validation_log(tmp_path / "run" / "validations.json") == read_validation_log(
        folder / "validations.json"
    )
    assert read_losses(tmp_path / "run") == read_losses(folder)
    names = [sorted(path.name for path in (each / "candidates").iterdir()) for each in (folder, tmp_path / "run")]
    assert names[0] == names[1]


def test_a_damaged_copy_is_refused_with_a_way_to_continue(tiny, best, tmp_path):
    shutil.copytree(best[0], tmp_path / "run")
    copy = max((tmp_path / "run" / "candidates").iterdir())
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=r"differs from its digest.*\n.*training.keep=last"):
        train(tiny, tmp_path / "run", resume=True)
    copy.unlink()
    with pytest.raises(IntegrityError, match="it is missing"):
        train(tiny, tmp_path / "run", resume=True)
    (tmp_path / "run" / "validations.json").unlink()
    with pytest.raises(IntegrityError, match="cannot keep its best step"):
        train(tiny, tmp_path / "run", resume=True)


def scores(costs, tokens=4):
    losses = np.asarray(costs, float) * tokens
    return RowScores(losses, np.zeros(len(losses), np.int64), np.full(len(losses), tokens))


LEVEL = np.linspace(1.0, 2.0, 10)
NOISE = np.asarray([0.1, -0.1] * 5)


@pytest.mark.parametrize(
    ("costs", "kept", "candidates"),
    [
        ([LEVEL + 0.5, LEVEL, LEVEL + 0.5], 2, [2]),
        ([LEVEL, LEVEL + NOISE - 0.01], 1, [1, 2]),  # lower by less than one standard error
        ([LEVEL, LEVEL + NOISE - 0.05], 2, [2]),
        ([LEVEL, LEVEL], 1, [1]),
        ([LEVEL, LEVEL + NOISE - 0.01, LEVEL + NOISE - 0.02], 1, [1, 3]),
        ([LEVEL, *(LEVEL + sign * NOISE - 0.001 * n for n, sign in enumerate([1, -1, 1, -1, 1, -1], 1))], 1, None),
    ],
)
def test_keeps_the_earliest_step_within_one_standard_error(costs, kept, candidates):
    remaining = ()
    for step, cost in enumerate(costs, 1):
        remaining = update_candidates(remaining, MeasuredStep(step, scores(cost)), "validation_loss")
    assert remaining[0].step == kept
    assert len(remaining) <= 4
    assert remaining[-1].scores.loss == min(scores(cost).loss for cost in costs)
    assert candidates is None or [each.step for each in remaining] == candidates


def test_standard_error_is_that_of_paired_rows():
    generator = np.random.default_rng(0)
    tokens = np.full(50, 3)
    left, right = (RowScores(generator.random(50), np.zeros(50, np.int64), tokens) for _ in range(2))
    difference = left.compare(right, "validation_loss")
    per_token = (left.losses - right.losses) / 3
    assert difference.mean == pytest.approx(per_token.mean())
    assert difference.standard_error == pytest.approx(per_token.std(ddof=1) / 50**0.5)
    # Rows of other lengths: the spread of the ratio over many samples of rows.
    tokens = generator.integers(1, 30, 400)
    losses = generator.gamma(2, tokens / 2), generator.gamma(2, tokens / 2)
    left, right = (RowScores(loss, np.zeros(400, np.int64), tokens) for loss in losses)
    samples = generator.integers(0, 400, (2000, 400))
    means = (losses[0] - losses[1])[samples].sum(1) / tokens[samples].sum(1)
    assert left.compare(right, "validation_loss").standard_error == pytest.approx(means.std(), rel=0.1)


def test_counts_measurements_after_the_first_best_one():
    def count(*losses):
        rows = [MeasuredLoss(step, loss, 0.0) for step, loss in enumerate(losses, 1)]
        return count_without_improvement(rows, "validation_loss")

    assert [count(), count(2.0), count(2.0, 1.0), count(1.0, 2.0, 3.0), count(1.0, 1.0)] == [0, 0, 0, 2, 1]
    assert count(1.0, None) == 1


def test_groups_rows_within_the_size_of_a_micro_batch():
    lengths = [5, 40, 7, 7, 100, 30]
    groups = list(group_rows(lengths, max_tokens=80, max_rows=3))
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(len(group) == 1 or len(group) * lengths[group[0]] <= 80 for group in groups)
    assert groups[0] == [4] and max(map(len, groups)) == 3


def test_a_changed_log_is_not_signed(cache_home, tmp_path):
    path = tmp_path / "validations.json"
    rows = (MeasuredLoss(2, 1.5, 0.25, {2: "a" * 64}, 0.0, 0.0), MeasuredLoss(4, None, 0.5, {2: "a" * 64}, 0.1, 0.2))
    write_validation_log(path, rows)
    assert read_validation_log(path).rows == rows and read_validation_log(path).signed_by_user
    path.write_text(path.read_text().replace("a" * 64, "b" * 64))
    assert not read_validation_log(path).signed_by_user
    for old, new in (('"step": 4', '"step": 1'), ("1.5", "NaN"), ("b" * 64, "../x"), ('"rows"', '"more": 1, "rows"')):
        damaged = tmp_path / "damaged.json"
        damaged.write_text(path.read_text().replace(old, new))
        with pytest.raises(IntegrityError, match=r"damaged|JSON"):
            read_validation_log(damaged)
