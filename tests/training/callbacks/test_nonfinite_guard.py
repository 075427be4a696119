"""A step that would spoil the adapter ends the run before the optimizer, and names its dialogues."""

import json
import re

import pytest
import torch
from test_equivalence import make_rows, train

from lora_chat.cli import main
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import DataError, NonFiniteError
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator, unpack_rows
from lora_chat.training.trainer import PackedSFTTrainer


@pytest.mark.parametrize("share", [True, False])
def test_unflatten_gives_the_trimmed_rows_back(share):
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in make_rows(5, shared=9)]
    flat = PackedBatchCollator(share)
    whole = {"micro_batches": [flat(rows[:3]), flat(rows[3:])]}
    assert unpack_rows(whole) == [flat.trim(row)["input_ids"] for row in rows]


def test_unflatten_of_padded_rows():
    batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    assert unpack_rows(batch) == [[5, 6, 7], [8]]


def poison(monkeypatch, at, what):
    """Make the loss or a gradient of one optimizer step infinite."""
    stock, calls = PackedSFTTrainer._run_micro_batches, []

    def step(self, *args, **kwargs):
        calls.append(0)
        loss = stock(self, *args, **kwargs)
        if len(calls) != at + 1:  # the first is the memory trial
            return loss
        if what == "gradient":
            next(p for p in self.model.parameters() if p.grad is not None).grad[0, 0] = float("inf")
            return loss
        return loss * float("nan")

    monkeypatch.setattr(PackedSFTTrainer, "_run_micro_batches", step)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_command_names_step_dialogues_and_checkpoint(cache_home, tmp_path, monkeypatch, capsys, what):
    poison(monkeypatch, 3, what)
    keys = ["checkpoint.every_steps=1", f"output.directory={tmp_path}", "training.epochs=3"]
    code = main(["sft", "recipes/smoke.yaml", *(word for key in keys for word in ("--set", key))])
    said = capsys.readouterr().err
    assert code == 6
    assert f"Step 3 has a non-finite {what}" in said
    named = next(line for line in said.splitlines() if line.startswith("Its dialogues: "))
    assert re.fullmatch(r"Its dialogues: recipes/smoke/dialogues.jsonl, lines \d(, \d)+\.", named)
    assert "The checkpoint of step 2 is intact" in said
    assert "--resume --set training.learning_rate=0.0025 --accept-change training.learning_rate" in said
    rows = [json.loads(line) for line in (tmp_path / "smoke-1" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    monkeypatch.undo()
    keys.append("training.learning_rate=0.0025")
    words = [word for key in keys for word in ("--set", key)]
    accepted = ["--accept-change", "training.learning_rate"]
    assert main(["sft", "recipes/smoke.yaml", *words, "--resume"]) == 7
    assert "training.learning_rate: it was 0.01, now it is 0.0025" in capsys.readouterr().err
    assert main(["sft", "recipes/smoke.yaml", *words, "--resume", *accepted]) == 0
    assert (tmp_path / "smoke-1" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("attention", ["flat", "padded"])
def test_a_step_without_supervised_tokens_is_refused(cache_home, tmp_path, attention):
    rows = [EncodedDialogue(row.input_ids, [-100] * len(row.labels)) for row in make_rows(8)]
    with pytest.raises(DataError, match="Step 1 has no supervised token"):
        train(rows, tmp_path / "run", attention=attention)


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_not_committed(cache_home, tmp_path, monkeypatch, capsys):
    stock = PackedSFTTrainer.begin_step

    def begin_step(self):
        stock(self)
        if self.state.global_step == 2:  # what an optimizer could do after the gradient was looked at
            next(p for p in self.model.parameters() if p.requires_grad).register_hook(self.spoil)

    def spoil(self, gradient):
        self.optimizer.param_groups[0]["lr"] = float("inf")
        return gradient

    monkeypatch.setattr(PackedSFTTrainer, "begin_step", begin_step)
    monkeypatch.setattr(PackedSFTTrainer, "spoil", spoil, raising=False)
    keys = ["checkpoint.every_steps=1", f"output.directory={tmp_path}"]
    assert main(["sft", "recipes/smoke.yaml", *(word for key in keys for word in ("--set", key))]) == 6
    assert "Step 3 left non-finite weights in the adapter" in capsys.readouterr().err
    assert not (tmp_path / "smoke-1" / "checkpoints" / "checkpoint-3").exists()


def test_infinite_adapter_from_the_beginning(cache_home, tmp_path):
    with pytest.raises(NonFiniteError, match="Step 1 has a non-finite loss"):
        train(make_rows(8), tmp_path / "run", poison=True)
