"""A run without a validation set (`data.validation_share: 0`) trains on all dialogues and works like any other."""

import json
import os
from pathlib import Path

import pytest

from lora_chat.cli import main

RECIPE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


@pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
def test_a_run_without_a_validation_set_is_finished_packed_and_merged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = ("data.validation_share=0", "data.system=Be kind.", "output.name=all")
    assert main(["sft", str(RECIPE), "--json", *(option for setting in settings for option in ("--set", setting))]) == 0
    assert "validation_loss" not in json.loads(capsys.readouterr().out)
    run = tmp_path / "runs" / "all-1"
    statistics = json.loads((run / "data.json").read_text())
    assert (statistics["train_dialogues"], statistics["validation_dialogues"]) == (8, 0)
    assert json.loads((run / "adapter" / "lora_chat.json").read_text())["system"] == "Be kind."
    assert main(["pack", str(run)]) == 0
    assert main(["verify", "all-1.lorachat"]) == 0
    assert main(["merge", str(run), "--to", "merged"]) == 0
    assert main(["eval", str(run)]) == 2
    assert "--data FILE" in capsys.readouterr().err
