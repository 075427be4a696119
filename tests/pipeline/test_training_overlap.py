"""A run keeps digests of its training dialogues, and evaluation data is compared with them."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lora_chat.cli import main
from lora_chat.config.load import read_recipe
from lora_chat.config.plan import make_plan
from lora_chat.errors import IntegrityError
from lora_chat.models.bound_adapter import BoundAdapter
from lora_chat.pipeline.parent_copy import _list_held_out
from lora_chat.pipeline.prepare import prepare_evaluation_files, prepare_run
from lora_chat.pipeline.training_overlap import keep_training_digests, with_known_overlap
from lora_chat.runs.origin import PREPARED_FILES
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.hardware import Hardware


def turn(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def kept(tmp_path, cache_home):
    write_rows(tmp_path / "train.jsonl", [turn(f"Question {i}?", f"Answer {i}.") for i in range(6)])
    write_rows(
        tmp_path / "valid.jsonl",
        [turn("question  2?", "answer 2."), turn("Unknown?", "Yes."), turn("Question 3?", "No.")],
    )
    write_rows(
        tmp_path / "questions.jsonl", [{"question": "QUESTION 1?", "accept": ["a"]}, {"question": "Q", "accept": ["a"]}]
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: {name: tiny-random}\nquantization: {mode: none}\n"
        "data: {train: train.jsonl, validation: valid.jsonl, workers: 1}\nevaluation: {questions: questions.jsonl}\n"
    )
    prepared = prepare_run(make_plan(read_recipe(recipe), Hardware("cpu", "test", 8 << 30, False, 2)))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run, keep_training_digests(run, prepared)


def open_evaluation(prepared, path):
    adapter = BoundAdapter(SimpleNamespace(identity=prepared.identity), prepared.base, prepared.tokenizer)
    return prepare_evaluation_files(adapter, [str(path)], None)


def test_validation_and_questions_are_looked_for_before_training(kept):
    run, prepared = kept
    overlap = prepared.overlap
    assert (overlap.items, overlap.exact, overlap.near, overlap.same_question) == (3, 1, 0, 1)
    assert (overlap.questions, overlap.seen_questions) == (2, 1)
    assert overlap.withholds("rows") and overlap.withholds("questions")
    assert overlap.examples[0].location.endswith("valid.jsonl:1")
    assert overlap.unseen_rows == (False, True, True)
    assert {run.training_digests.name, f"parent/{run.training_digests.name}"} <= set(PREPARED_FILES)
    assert list(_list_held_out(run)) == [run.training_digests]


def test_evaluation_file_of_a_run_is_looked_for(kept, tmp_path, messages):
    run, prepared = kept
    given = open_evaluation(prepared, tmp_path / "train.jsonl")
    seen = with_known_overlap(given, SimpleNamespace(name="run", training_run=run))
    assert (seen.overlap.items, seen.overlap.exact, seen.overlap.withholds_dialogues) == (6, 6, True)
    assert with_known_overlap(given, SimpleNamespace(name="it", training_run=None)).overlap is None
    run.training_digests.write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="no digests that `sft` writes"):
        with_known_overlap(given, SimpleNamespace(name="run", training_run=run))


def test_dialogues_of_a_parent_count_as_trained(kept, tmp_path):
    run, prepared = kept
    child = RunFolder(tmp_path / "child")
    child.parent.mkdir(parents=True)
    (child.parent / run.training_digests.name).write_bytes(run.training_digests.read_bytes())
    given = open_evaluation(prepared, write_rows(tmp_path / "more.jsonl", [turn("More?", "More.")]))
    keep_training_digests(child, replace(prepared, train=given.validation))
    both = open_evaluation(
        prepared, write_rows(tmp_path / "both.jsonl", [turn("More?", "More."), turn("Question 5?", "Answer 5.")])
    )
    assert with_known_overlap(both, SimpleNamespace(name="child", training_run=child)).overlap.exact == 2


@pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
def test_a_run_tested_on_its_training_data_is_caught(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [turn(f"Question {i}?", f"Answer {i}.") for i in range(30)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "valid.jsonl", [*rows[:4], *(turn(f"What about {i}?", f"Reply {i}.") for i in range(25))])
    (tmp_path / "r.yaml").write_text(
        "base: {name: tiny-random}\nquantization: {mode: none}\nadapter: {rank: 4}\n"
        "data: {train: train.jsonl, validation: valid.jsonl}\naudit: {leak: warn}\ntraining: {epochs: 1}\n"
        "evaluation: {samples: 1, max_new_tokens: 4}\n"
    )
    assert main(["sft", "r.yaml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"]["word"] == "withheld"
    assert (result["overlap"]["exact"], result["overlap"]["unseen"]["items"]) == (4, 25)
    for thing in ("runs/r-1", "runs/r-1/adapter"):
        assert main(["eval", thing, "--data", "train.jsonl", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["verdict"]["word"], result["overlap"]["exact"]) == ("withheld", 30)
    assert main(["pack", "runs/r-1"]) == 0
    assert main(["verify", "r-1.lorachat"]) == 0
