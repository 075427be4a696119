"""Tests that a resumed run ends with the same bytes as an uninterrupted one."""

import json
import shutil

import pytest
import torch
from test_checkpoints import damage, damages
from test_equivalence import make_rows

from lora_chat.config.plan import make_plan, plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, CheckpointSection, QuantizationSection, Recipe
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.runs.checkpoints import commit_checkpoint, find_newest_checkpoint, move_damaged_aside
from lora_chat.system.hardware import Hardware
from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
from lora_chat.training.callbacks.memory_check import MemoryCheckCallback
from lora_chat.training.sft import train_sft
from lora_chat.training.trainer import PackedSFTTrainer
from lora_chat.training.training_run import TrainingRun

pytestmark = pytest.mark.slow  # many short trainings

FP32 = Hardware("cpu", "test", 0, False, 2)
ROWS = make_rows(22)
STEPS = 9


class Killed(Exception):
    pass


@pytest.fixture
def run(cache_home, tmp_path, monkeypatch):
    """Return a function that trains in a folder and returns the adapter's weights and the metrics without times."""

    def train(name, resume=False, kill_at=None, dropout=0.1, keep=2, each_epoch=False, rank=4, **training):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        base = find_base(BaseSection(name="tiny-random"))
        model = load_base_model(base, plan_precision(QuantizationSection(mode="none"), FP32))
        model = attach_adapter(model, AdapterSection(rank=rank, dropout=dropout), seed=3)
        settings = {"epochs": 3, "learning_rate": 1e-2, "effective_batch_size": 8, "micro_batch_tokens": 90} | training
        plan = make_plan(Recipe.model_validate({"data": {"train": "x"}, "training": settings}), FP32).training
        newest, damaged = find_newest_checkpoint(folder / "checkpoints") if resume else (None, [])
        move_damaged_aside(damaged)
        stock, calls = PackedSFTTrainer.training_step, []

        def training_step(self, *args, **kwargs):
            calls.append(0)
            if kill_at is not None and len(calls) > kill_at:
                raise Killed
            return stock(self, *args, **kwargs)

        settings = CheckpointSection(every_steps=1, keep=keep)
        with monkeypatch.context() as patch:
            patch.setattr(PackedSFTTrainer, "training_step", training_step)
            train_sft(
                TrainingRun(
                    model=model,
                    tokenizer=load_tokenizer(base),
                    train_rows=ROWS,
                    validation_rows=ROWS[:4],
                    plan=plan,
                    metrics_path=folder / "metrics.jsonl",
                    bfloat16=False,
                    evaluate_each_epoch=each_epoch,
                    checkpoint_policy=CheckpointPolicy(folder / "checkpoints", settings, {"a": 1}, newest),
                )
            )
        weights = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
        return weights, read_metrics(folder)

    return train


def read_metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
    return rows


def assert_same(left, right):
    assert left[1] == right[1]
    assert left[0].keys() == right[0].keys()
    assert all(torch.equal(weight, right[0][name]) for name, weight in left[0].items())


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        ([4], {"dropout": 0.1}),
        slow([1, 2, 3, 5, 6, 7, 8], {"dropout": 0.1}),
        slow([1, 3, 4, 8], {"dropout": 0.0}),
        slow([2, 3, 7], {"fast_path": False, "micro_batch_size": 2}),
        slow([2, 3, 7], {"gradient_checkpointing": True}),
        slow([3, 7], {"optimizer": "adamw_8bit", "rank": 64}),
        ([5], {"lora_plus_ratio": 4.0, "neftune_alpha": 10.0, "label_smoothing": 0.1, "min_learning_rate": 1e-3}),
        slow([3, 7], {"neftune_alpha": 10.0, "fast_path": False, "micro_batch_size": 2, "adam_beta2": 0.9}),
        slow([3, 7], {"lora_plus_ratio": 4.0, "optimizer": "adamw_8bit", "rank": 64, "warmup_steps": 5}),
    ],
)
def test_resuming_after_any_step_gives_identical_weights(run, tmp_path, steps, settings):
    complete = run("complete", keep=STEPS, **settings)
    assert len([row for row in complete[1] if "loss" in row]) == STEPS
    for step in steps:  # the state after a kill during the next step
        shutil.copytree(tmp_path / "complete", tmp_path / f"interrupted-{step}")
        for later in range(step + 1, STEPS + 1):
            shutil.rmtree(tmp_path / f"interrupted-{step}" / "checkpoints" / f"checkpoint-{later}")
        assert_same(run(f"interrupted-{step}", resume=True, keep=STEPS, **settings), complete)


def test_killed_run_resumes_to_identical_weights(run, tmp_path, monkeypatch):
    stock = torch.load

    def load(*args, **kwargs):
        assert kwargs["weights_only"] is True
        return stock(*args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    complete = run("complete")
    with pytest.raises(Killed):
        run("interrupted", kill_at=5)
    assert len(read_metrics(tmp_path / "interrupted")) == 5
    assert_same(run("interrupted", resume=True), complete)


@pytest.mark.parametrize("epochs", [slow(2.0), slow(2.5)])
def test_resuming_a_finished_training_changes_nothing(run, epochs):
    complete = run("complete", epochs=epochs, each_epoch=True)
    assert_same(run("complete", resume=True, epochs=epochs, each_epoch=True), complete)


@pytest.mark.parametrize("fast_path", [slow(True), slow(False)])
def test_evaluation_and_memory_check_change_nothing(run, monkeypatch, fast_path):
    settings = {"fast_path": fast_path, "micro_batch_size": 4}
    plain = run("plain", **settings)
    measured = run("measured", each_epoch=True, **settings)
    losses = [row for row in measured[1] if "validation_loss" not in row]
    assert [row["step"] for row in measured[1] if "validation_loss" in row] == [3, 6, 9]
    assert_same((measured[0], losses), plain)
    monkeypatch.setattr(MemoryCheckCallback, "on_train_begin", lambda *args, **kwargs: None)
    assert_same(run("untried", **settings), plain)


@pytest.mark.parametrize("interrupted", [slow(3), slow(6), slow(9)])
def test_resuming_measures_an_interrupted_validation_loss(run, monkeypatch, interrupted):
    complete = run("complete", each_epoch=True)
    stock, calls = PackedSFTTrainer.score_rows, []

    def score_rows(self, *args, **kwargs):
        calls.append(0)
        if 3 * len(calls) == interrupted:
            raise Killed
        return stock(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PackedSFTTrainer, "score_rows", score_rows)
        with pytest.raises(Killed):
            run("interrupted", each_epoch=True)
    assert_same(run("interrupted", resume=True, each_epoch=True), complete)


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_the_one_before(run, tmp_path):
    complete = run("complete")
    with pytest.raises(Killed):
        run("interrupted", kill_at=5)
    newest = tmp_path / "interrupted" / "checkpoints" / "checkpoint-5"
    kinds = {kind: (name, kind, draw) for name, kind, draw in damages(newest, 70, seed=4)}
    for number, (name, kind, draw) in enumerate(kinds.values()):
        shutil.copytree(tmp_path / "interrupted", tmp_path / f"copy-{number}")
        damage(tmp_path / f"copy-{number}" / "checkpoints" / "checkpoint-5" / name, kind, draw)
        assert find_newest_checkpoint(tmp_path / f"copy-{number}" / "checkpoints")[0].step == 4
        assert_same(run(f"copy-{number}", resume=True), complete)


@pytest.mark.slow
def test_changed_plan_decides_the_learning_rate_after_resuming(run):
    with pytest.raises(Killed):
        run("interrupted", kill_at=4, epochs=2)
    longer = run("interrupted", resume=True, epochs=3, learning_rate=4e-3)[1]
    uninterrupted = run("uninterrupted", epochs=3, learning_rate=4e-3)[1]
    assert [row["step"] for row in longer] == list(range(1, 10))
    assert [row["learning_rate"] for row in longer[4:]] == [row["learning_rate"] for row in uninterrupted[4:]]
    assert longer[3]["learning_rate"] != uninterrupted[3]["learning_rate"]


def _wrong_shape(states):
    states[0]["exp_avg"] = torch.zeros(7, 3)


def _wrong_size_of_squares(states):
    states[0]["exp_avg_sq"] = torch.zeros(1)


def _swapped_states(states):
    wide = next(number for number, state in states.items() if state["exp_avg"].shape != states[0]["exp_avg"].shape)
    states[0], states[wide] = states[wide], states[0]


def _number_instead_of_tensor(states):
    states[0]["exp_avg"] = 0.5


def _missing_step(states):
    del states[0]["step"]


@pytest.mark.parametrize(
    "change",
    [_wrong_shape, _wrong_size_of_squares, _swapped_states, _number_instead_of_tensor, _missing_step, dict.clear],
)
def test_rejects_optimizer_state_with_wrong_shapes(run, tmp_path, change):
    with pytest.raises(Killed):
        run("one", kill_at=4)
    newest, _ = find_newest_checkpoint(tmp_path / "one" / "checkpoints")
    optimizer_state = torch.load(newest.folder / "optimizer.pt", weights_only=True)
    change(optimizer_state["state"])
    torch.save(optimizer_state, newest.folder / "optimizer.pt")
    (newest.folder / "manifest.json").unlink()
    commit_checkpoint(newest.folder, newest.identity)  # a forger can write matching digests
    with pytest.raises(IntegrityError, match="cannot be resumed"):
        run("one", resume=True)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_accepts_its_own_optimizer_state(run, optimizer):
    with pytest.raises(Killed):
        run("one", kill_at=4, optimizer=optimizer)
    run("one", resume=True, optimizer=optimizer)
