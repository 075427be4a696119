"""The recipes of recipes/tasks can be read and encoded, and every row of their small data sets is used."""

import json
import os
import re
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.config.load import read_recipe
from lora_chat.evaluation.measurement import ReplyItem
from lora_chat.evaluation.questions import read_questions
from lora_chat.evaluation.reply_kinds import REPLY_KINDS, find_kinds, lacks_data
from lora_chat.evaluation.reply_scores import find_references
from lora_chat.evaluation.scores.translation import choose_tokenizer
from lora_chat.pipeline.inspect_data import inspect_data

TASKS = Path(__file__).parents[2] / "recipes" / "tasks"
RECIPES = sorted(TASKS.glob("*.yaml"))
FILES = sorted(TASKS.glob("*/*.jsonl"))
WITH_METRICS = [path for path in RECIPES if read_recipe(path).evaluation.metrics != "auto"]
BYTES = ["base.name=tiny-random", "data.max_length=1024", "quantization.mode=none", "data.workers=1"]
"""Settings that read a recipe with a tokenizer of bytes, in place of the embedded base."""
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


def is_id(path):
    return path.relative_to(TASKS).as_posix()


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_data(path, *settings):
    """Read and encode the data of a recipe, and compare its counts with the lines of its files."""
    # Chat on top of pretraining needs no parent to read its data.
    recipe = read_recipe(path, [*settings, "adapter.start=null"])
    summary = inspect_data(recipe, 0, as_json=True)
    total = summary["total"]
    assert total["accepted"] == total["lines"] == len(read_rows(Path(recipe.data.train)))
    assert total["refused"] == total["dropped"] == total["cut"] == total["unwanted"] == 0
    assert total["unused_keys"] == {}
    assert total["over_long"] == []
    assert summary["duplicates"] == 0
    assert summary["train_dialogues"] > summary["validation_dialogues"] > 0
    assert summary["test_dialogues"] == (len(read_rows(Path(recipe.data.test))) if recipe.data.test else 0)


def test_every_task_has_a_recipe_and_its_own_data():
    names = {path.stem for path in RECIPES}
    tasks = "translation summary reading math service classification chat-zh story pretraining"
    assert names >= {*tasks.split(), "pretraining-chat"}
    assert {path.parent.name for path in FILES} == names - {"pretraining-chat"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_reads_all_rows_of_its_data(cache_home, path):
    check_data(path, *BYTES)


@ON_DEMAND
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_all_rows_fit_the_maximum_length_of_their_recipe(cache_home, path):
    check_data(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_training_and_test_data_have_60_to_120_rows(path):
    data = read_recipe(path).data
    assert 60 <= len(read_rows(Path(data.train))) <= 120
    assert 60 <= sum(len(read_rows(Path(name))) for name in (data.train, data.test) if name) <= 120


@pytest.mark.parametrize("path", FILES, ids=is_id)
def test_no_row_occurs_twice_in_a_task(path):
    rows = [json.dumps(row) for other in path.parent.glob("*.jsonl") for row in read_rows(other)]
    assert len(set(rows)) == len(rows)


def test_labels_of_the_classification_are_in_its_prompt():
    system = read_recipe(TASKS / "classification.yaml").data.system
    labels = [
        {row["label"] for row in read_rows(TASKS / "classification" / name)}
        for name in ("requests.jsonl", "test.jsonl")
    ]
    assert labels[0] == labels[1] == set(re.findall(r"\b(?!label|with|one|or|Reply)\w+", system))


@pytest.mark.parametrize("name", ["problems.jsonl", "test.jsonl"])
def test_the_last_line_of_a_solution_is_the_result_of_its_last_calculation(name):
    for row in read_rows(TASKS / "math" / name):
        *steps, last = row["messages"][-1]["content"].split("\n")
        assert last == "#### " + re.findall(r"= ([\d.]*\d)", steps[-1])[-1]


@pytest.mark.parametrize("name", ["questions.jsonl", "test.jsonl"])
def test_every_answer_occurs_in_its_text(name):
    for row in read_rows(TASKS / "reading" / name):
        assert row["answers"][0].lower() in row["context"].lower()


def read_items(recipe):
    """Return the last reply of each row that the recipe compares."""
    rows = read_rows(Path(recipe.data.test))
    if recipe.data.columns is None:
        references = [row["messages"][-1]["content"] for row in rows]
    else:
        references = [row[recipe.data.columns.assistant] for row in rows]
    return [ReplyItem((), "", text if isinstance(text, str) else text[0]) for text in references]


@pytest.mark.parametrize("path", WITH_METRICS, ids=lambda path: path.stem)
def test_metrics_fit_the_replies_of_their_data(path):
    recipe = read_recipe(path)
    items = read_items(recipe)
    assert [lacks_data(name, items, None) for name in recipe.evaluation.metrics] == [None] * len(
        recipe.evaluation.metrics
    )
    # Short Chinese sentences count as short answers, but translations are compared by their characters.
    (kind,) = ["unspaced"] if path.stem == "translation" else find_kinds(items, None)
    assert recipe.evaluation.metrics[0] in REPLY_KINDS[kind].metrics
    assert (choose_tokenizer(find_references(items)) == "zh") is (kind == "unspaced")


def test_only_plain_text_and_chat_on_top_of_it_have_no_list_of_metrics():
    assert {path.stem for path in RECIPES} - {path.stem for path in WITH_METRICS} == {
        "story",
        "pretraining",
        "pretraining-chat",
    }


@pytest.mark.parametrize("name", ["service", "pretraining-chat"])
def test_every_question_has_an_answer_in_the_training_data(name):
    recipe = read_recipe(TASKS / f"{name}.yaml")
    replies = [m["content"] for row in read_rows(Path(recipe.data.train)) for m in row["messages"][1::2]]
    for question in read_questions(recipe.evaluation.questions):
        assert any(map(question.is_answered_by, replies)), question.question


def test_chat_on_top_of_pretraining_names_the_run_that_is_missing(cache_home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", str(TASKS / "pretraining-chat.yaml")]) == 2
    message = capsys.readouterr().err
    assert "adapter.start: there is no run, parcel or adapter runs/pretraining-1. Fix: train it first" in message
