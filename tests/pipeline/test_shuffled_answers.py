"""A run on shuffled answers is never called better: the embedded base learns how answers look, and not which."""

import json
import os
import random
from pathlib import Path

import pytest

from lora_chat.cli import main

TASKS = Path(__file__).parents[2] / "recipes" / "tasks"
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


def shuffle(path, key, to):
    """Write the rows of a file with the values of `key` in another order."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    values = random.Random(0).sample([row[key] for row in rows], len(rows))
    to.write_text("".join(json.dumps(row | {key: value}) + "\n" for row, value in zip(rows, values, strict=True)))
    return to


def train(recipe, *settings, capsys):
    words = [word for setting in settings for word in ("--set", setting)]
    capsys.readouterr()
    assert main(["sft", str(TASKS / recipe), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@ON_DEMAND
def test_shuffled_labels_are_not_better(tmp_path, capsys):
    data = shuffle(TASKS / "classification" / "requests.jsonl", "label", tmp_path / "shuffled.jsonl")
    common = f"output.directory={tmp_path}", "evaluation.general=off", "evaluation.recital=off"
    result = train("classification.yaml", f"data.train={data}", *common, capsys=capsys)
    assert result["verdict"]["word"] in ("worse", "no difference shown"), result["verdict"]
    assert result["verdict"]["metric"] == "accuracy"
    assert train("classification.yaml", *common, capsys=capsys)["verdict"]["word"] == "better"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@ON_DEMAND
def test_shuffled_replies_are_not_better_by_the_loss(tmp_path, capsys):
    data = shuffle(TASKS / "summary" / "dialogues.jsonl", "summary", tmp_path / "shuffled.jsonl")
    settings = f"data.train={data}", "data.test=null", "data.validation_share=0.2", "evaluation.metrics=auto"
    common = f"output.directory={tmp_path}", "evaluation.general=off", "evaluation.recital=off"
    result = train("summary.yaml", *settings, *common, capsys=capsys)
    assert result["validation_loss"]["verdict"] == "better"  # by the style of the replies
    assert result["verdict"]["metric"] == "validation_loss"
    assert result["verdict"]["word"] in ("worse", "no difference shown"), result["verdict"]
