"""Tests that a non-finite step ends the run before the optimizer, with its dialogues in the message."""

import json
import re

import pytest
from test_equivalence import make_rows, train

from lora_chat.cli import main
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import DataError, NonFiniteError
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator
from lora_chat.training.step_collator import PackedStepCollator, split_rows
from lora_chat.training.trainer import PackedSFTTrainer


@pytest.mark.parametrize("share_prefix", [True, False])
def test_every_process_knows_the_trimmed_rows_of_a_step(share_prefix):
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in make_rows(5, shared=9)]
    packed = PackedBatchCollator(share_prefix)
    for process in range(2):
        step_batch = PackedStepCollator(packed, None, process, 2)(rows)
        assert split_rows(step_batch) == [packed.trim(row)["input_ids"] for row in rows]


def poison(monkeypatch, step, kind):
    """Make the loss or a gradient of one optimizer step infinite."""
    stock, calls = PackedSFTTrainer._run_micro_batches, []

    def run_micro_batches(self, *args, **kwargs):
        calls.append(0)
        loss = stock(self, *args, **kwargs)
        if len(calls) != step + 1:  # the first call is the memory check
            return loss
        if kind == "gradient":
            next(p for p in self.model.parameters() if p.grad is not None).grad[0, 0] = float("inf")
            return loss
        return loss * float("nan")

    monkeypatch.setattr(PackedSFTTrainer, "_run_micro_batches", run_micro_batches)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_command_names_step_dialogues_and_checkpoint(cache_home, tmp_path, monkeypatch, capsys, kind):
    poison(monkeypatch, 3, kind)
    keys = ["checkpoint.every_steps=1", f"output.directory={tmp_path}", "training.epochs=3"]
    code = main(["sft", "recipes/smoke.yaml", *(option for key in keys for option in ("--set", key))])
    stderr = capsys.readouterr().err
    assert code == 6
    assert f"Step 3 has a non-finite {kind}" in stderr
    dialogues_line = next(line for line in stderr.splitlines() if line.startswith("Its dialogues: "))
    assert re.fullmatch(r"Its dialogues: recipes/smoke/dialogues.jsonl, lines \d(, \d)+\.", dialogues_line)
    assert "The checkpoint of step 2 is intact" in stderr
    assert "--resume --set training.learning_rate=0.0025 --accept-change training.learning_rate" in stderr
    rows = [json.loads(line) for line in (tmp_path / "smoke-1" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    monkeypatch.undo()
    keys.append("training.learning_rate=0.0025")
    options = [option for key in keys for option in ("--set", key)]
    accept_change = ["--accept-change", "training.learning_rate"]
    assert main(["sft", "recipes/smoke.yaml", *options, "--resume"]) == 7
    assert "training.learning_rate: it was 0.01, now it is 0.0025" in capsys.readouterr().err
    assert main(["sft", "recipes/smoke.yaml", *options, "--resume", *accept_change]) == 0
    assert (tmp_path / "smoke-1" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_rejects_step_without_supervised_tokens(cache_home, tmp_path, attention):
    rows = [EncodedDialogue(row.input_ids, [-100] * len(row.labels)) for row in make_rows(8)]
    with pytest.raises(DataError, match="Step 1 has no supervised token"):
        train(rows, tmp_path / "run", attention=attention)


@pytest.mark.slow
def test_does_not_commit_non_finite_weights(cache_home, tmp_path, monkeypatch, capsys):
    stock = PackedSFTTrainer.begin_step

    def begin_step(self):
        stock(self)
        if self.state.global_step == 2:  # an optimizer could do this after the check of the gradient
            next(p for p in self.model.parameters() if p.requires_grad).register_hook(self.set_infinite_rate)

    def set_infinite_rate(self, gradient):
        self.optimizer.param_groups[0]["lr"] = float("inf")
        return gradient

    monkeypatch.setattr(PackedSFTTrainer, "begin_step", begin_step)
    monkeypatch.setattr(PackedSFTTrainer, "set_infinite_rate", set_infinite_rate, raising=False)
    keys = ["checkpoint.every_steps=1", f"output.directory={tmp_path}"]
    assert main(["sft", "recipes/smoke.yaml", *(option for key in keys for option in ("--set", key))]) == 6
    assert "Step 3 left non-finite weights in the adapter" in capsys.readouterr().err
    assert not (tmp_path / "smoke-1" / "checkpoints" / "checkpoint-3").exists()


def test_rejects_non_finite_initial_adapter(cache_home, tmp_path):
    with pytest.raises(NonFiniteError, match="Step 1 has a non-finite loss"):
        train(make_rows(8), tmp_path / "run", poison=True)
