"""`lora-chat new`: a recipe for data and a device, checked before it is written."""

import io
import json

import pytest
import yaml

from lora_chat.cli import main
from lora_chat.pipeline import estimate
from lora_chat.pipeline.new import base_candidates, new_recipe
from lora_chat.pipeline.new.base_proposals import BaseProposal, find_proposal

LABELS = ("refund", "lost_card", "fee")
TABLE = "text,label\n" + "".join(f"please help me with thing {i},{LABELS[i % 3]}\n" for i in range(24))


@pytest.fixture
def new(cache_home, tmp_path, capsys, monkeypatch):
    """Return a function that runs `new` in an empty folder; it returns exit code, stdout and stderr."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LORA_CHAT_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)

    def run(*words, command="new"):
        capsys.readouterr()
        code = main([command, *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_writes_a_recipe_that_data_accepts_and_replaces_nothing(new, tmp_path):
    (tmp_path / "my # table.csv").write_text(TABLE)
    (tmp_path / "my # table-test.csv").write_text("text,label\nwho am I,fee\n")
    code, out, _ = new("mine", "--data", "my # table.csv", "--base", "tiny-random", "--json")
    result = json.loads(out)
    assert (code, result["task"], result["base"]) == (0, "classification", "tiny-random")
    assert result["columns"] == {"user": "text", "assistant": "label"}
    text = (tmp_path / "mine.yaml").read_text()
    recipe = yaml.safe_load(text)
    assert recipe["data"]["train"] == "my # table.csv"
    assert recipe["data"]["test"] == "my # table-test.csv"
    assert recipe["data"]["system"] == "Reply with one label: fee, lost_card or refund."
    assert recipe["evaluation"]["metrics"] == ["accuracy", "macro_f1"]
    assert text.splitlines()[0].startswith("# Sort texts into classes: 24 dialogues of my # table.csv")
    assert new("mine.yaml", command="data")[0] == 0
    code, _, err = new("mine", "--data", "my # table.csv", "--base", "tiny-random")
    assert code == 2
    assert "exists" in err
    assert (tmp_path / "mine.yaml").read_text() == text


def test_refuses_data_as_sft_does_and_writes_nothing(new, tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "images": ["x.jpg"]}
    (tmp_path / "my.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = new("mine", "--data", "my.jsonl", "--base", "tiny-random")
    assert code == 3
    assert "--set data.ignore_keys=images" in err
    assert [path.name for path in tmp_path.iterdir()] == ["my.jsonl"]
    assert new("mine", "--data", "missing.jsonl")[0] == 3
    assert new("mine")[0] == 2


def test_settings_of_the_user_replace_proposals(new, tmp_path):
    (tmp_path / "my.jsonl").write_text(
        "".join(json.dumps({"a": f"x{i}", "b": f"y{i}", "c": "z"}) + "\n" for i in range(4))
    )
    assert new("mine", "--data", "my.jsonl", "--base", "tiny-random")[0] == 3
    words = ["--set", "data.columns={user: a, assistant: b}", "--set", "training.epochs=7"]
    assert new("mine", "--data", "my.jsonl", "--base", "tiny-random", *words)[0] == 0
    recipe = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert recipe["data"]["columns"] == {"user": "a", "assistant": "b"}
    assert recipe["training"]["epochs"] == 7


def test_a_task_without_data_copies_example_data(new, tmp_path):
    assert new("--task", "summary", "--base", "tiny-random", "--set", "data.limit=12")[0] == 0
    assert sorted(path.name for path in (tmp_path / "summary").iterdir()) == ["dialogues.jsonl", "test.jsonl"]
    recipe = yaml.safe_load((tmp_path / "summary.yaml").read_text())
    assert recipe["data"]["train"] == "summary/dialogues.jsonl"
    assert "{dialogue}" in recipe["data"]["columns"]["user"]


def test_asks_in_a_terminal_and_takes_the_answers(new, tmp_path, monkeypatch):
    rows = [{"left": f"Hello there number {i}", "right": f"Good day to you and number {i}"} for i in range(6)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("lora_chat.pipeline.new.user_questions.is_answered_by_user", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("right\nleft\nnonsense\nquestions\n\n"))
    assert new("mine", "--data", "my.jsonl", "--base", "tiny-random")[0] == 0
    recipe = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert recipe["data"]["columns"] == {"user": "right", "assistant": "left"}
    assert recipe["evaluation"]["metrics"] == ["exact_match", "token_f1"]


def test_plans_bases_for_a_card_and_refuses_one_that_is_too_small(new, tmp_path, monkeypatch):
    """The embedded base is the tiny one here, because the other takes seconds to unpack."""
    proposals = (BaseProposal("tiny-random", frozenset(), "-"), find_proposal("Qwen/Qwen2.5-0.5B-Instruct"))
    monkeypatch.setattr(base_candidates, "BASE_PROPOSALS", proposals)
    monkeypatch.setattr(new_recipe, "EMBEDDED_BASE", "tiny-random")
    monkeypatch.setattr(estimate, "bundled_base_names", lambda: ("tiny-random",))
    (tmp_path / "my.csv").write_text(TABLE)
    code, out, _ = new("mine", "--data", "my.csv", "--gpu", "RTX 3060", "--json")
    result = json.loads(out)
    assert (code, result["base"], result["device"]) == (0, "Qwen/Qwen2.5-0.5B-Instruct", "GeForce RTX 3060 8GB")
    assert [candidate["verdict"] for candidate in result["candidates"]] == ["fits", "fits"]
    assert any("12GB" in note for note in result["notes"])
    code, out, _ = new("here", "--data", "my.csv", "--json")
    assert (code, json.loads(out)["base"]) == (0, "tiny-random")
    code, _, err = new("small", "--data", "my.csv", "--memory", "1GiB", "--base", "Qwen/Qwen2.5-0.5B-Instruct")
    assert (code, "does not fit" in err) == (5, True)
    assert not (tmp_path / "small.yaml").exists()
