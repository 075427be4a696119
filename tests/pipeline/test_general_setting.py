"""`evaluation.general` decides which items a run asks: before weights load, in the planned time."""

import json
import os

import numpy as np
import pytest

from lora_chat.cli import main
from lora_chat.config.load import read_recipe
from lora_chat.config.plan import make_plan
from lora_chat.data.lengths import DataLengths, RowLengths
from lora_chat.errors import DataError, IntegrityError, RecipeError
from lora_chat.evaluation.general.items import read_items, read_shipped_items
from lora_chat.evaluation.general.selection import GeneralSet
from lora_chat.models.shape import read_shape
from lora_chat.pipeline.general_items import (
    FOREIGN_TEMPLATE_NOTE,
    choose_general_set,
    read_general_file,
    read_kept_general,
    take_planned_items,
)
from lora_chat.planning.calibration import MachineBenchmark
from lora_chat.planning.device import DeviceSpeed, TargetDevice
from lora_chat.planning.general_time import add_general_items
from lora_chat.planning.phase_time import TimeEstimate
from lora_chat.planning.settings_search import Candidate, PlanningProblem
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.hardware import Hardware

ALL = pytest.mark.skipif("LORA_CHAT_ALL_BASES" not in os.environ, reason="on demand: LORA_CHAT_ALL_BASES=1")
LARGE = 10**8
SHIPPED = read_shipped_items()


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"question": f"Say {word}.", "accept": [word]} for word in ("one", "two", "anna.keller@gmx.de")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("setting", "weights", "asked"),
    [("auto", LARGE, 88), ("auto", 10**5, None), ("all", 10**5, 88), ("off", LARGE, None)],
)
def test_setting_and_size_of_the_base_choose_the_set(tiny_tokenizer, setting, weights, asked):
    general = choose_general_set(setting, (), tiny_tokenizer, weights=weights)
    assert (general and len(general.items)) == asked
    if general:
        assert general.name == "shipped"
        assert "Chinese items are left out" in general.notes[-1]
        assert general.is_sampled == (setting == "auto")


def test_a_file_is_asked_whole_and_redacted(tiny_tokenizer, own_file):
    items = read_general_file(str(own_file), frozenset({"personal_data"}))
    assert "anna.keller@gmx.de" not in json.dumps([item.as_row for item in items])
    general = choose_general_set(str(own_file), items, tiny_tokenizer, weights=100)
    assert (general.name, general.counts, general.available) == ("own.jsonl", (3,), 3)


def test_a_prompt_that_does_not_fit_is_refused_with_its_line(tiny_tokenizer, own_file):
    with pytest.raises(DataError, match=r"own.jsonl:1: the prompt has \d+ tokens; at most 8 fit"):
        choose_general_set(str(own_file), read_items(str(own_file)), tiny_tokenizer, weights=100, positions=40)


def test_a_foreign_template_is_named_and_a_refusing_one_asks_nothing(tiny_tokenizer, monkeypatch, messages):
    from lora_chat.data.encoding.bundled_templates import CHAT_TEMPLATES_BY_NAME

    monkeypatch.setattr(tiny_tokenizer, "chat_template", CHAT_TEMPLATES_BY_NAME["plain"].text)
    assert FOREIGN_TEMPLATE_NOTE in choose_general_set("auto", (), tiny_tokenizer, weights=LARGE).notes
    assert choose_general_set("auto", (), tiny_tokenizer, weights=LARGE, positions=33) is None
    with pytest.raises(DataError, match="at most 1 fit"):
        choose_general_set("all", (), tiny_tokenizer, weights=LARGE, positions=33)


def test_a_run_keeps_its_items(tmp_path):
    run = RunFolder(tmp_path)
    assert read_kept_general(run, "auto") is None
    english = GeneralSet(SHIPPED[:88], 88).take(40)
    run.write_lines(run.general, (item.as_row for item in english.items))
    kept = read_kept_general(run, "auto")
    assert (kept.items, kept.available, kept.name) == (english.items, 88, "shipped")
    assert read_kept_general(run, "/a/own.jsonl").name == "own.jsonl"
    sampled = GeneralSet(SHIPPED, len(SHIPPED), is_sampled=True)
    assert len(take_planned_items(sampled, 80, run).items) == 40
    assert len(take_planned_items(sampled, 80, None).items) == 80
    assert len(take_planned_items(sampled, None, None).items) == 40
    assert take_planned_items(None, 80, None) is None
    run.general.write_text("{}\n")
    with pytest.raises(IntegrityError, match=r"general\.jsonl is damaged"):
        read_kept_general(run, "auto")


def test_off_is_not_a_boolean_and_a_file_starts_at_the_recipe(tmp_path):
    recipe = tmp_path / "r.yaml"
    for text, expected in [("off", "off"), ("auto", "auto"), ("own.jsonl", str(tmp_path.resolve() / "own.jsonl"))]:
        recipe.write_text(f"data: {{train: a.jsonl}}\nevaluation:\n  general: {text}\n")
        assert read_recipe(recipe).evaluation.general == expected
    recipe.write_text("data: {train: a.jsonl}\nevaluation:\n  general: on\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:3"):
        read_recipe(recipe)


CONFIG = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip


def make_candidate(**lengths):
    rows = RowLengths(*(np.full(100, n) for n in (50, 50, 20)))
    data = DataLengths(rows, rows, max_reply_tokens=32, **lengths)
    plan = make_plan(read_recipe("recipes/smoke.yaml"), Hardware("cpu", "x", 2**34, True, 2))
    speed = DeviceSpeed(1e12, 1e10, 0.0, 1.0, 1.0, "a test")
    target = TargetDevice("cpu", "x", 2**34, 2**34, 0, at_hand=True, speed=speed)
    return Candidate(plan, PlanningProblem(read_shape(CONFIG, "x"), data, target))


def make_durations(train_seconds):
    return {name: TimeEstimate(0, 0, 0) for name in ("load", "evaluate", "generate")} | {
        "train": TimeEstimate(train_seconds, 0, 0)
    }


ALL_ITEMS = {"general_prompt_tokens": (60,) * 151, "general_counts": (40, 80, 151)}


@pytest.mark.parametrize(
    ("train_seconds", "batches", "expected"), [(0, 1, 40), (39, 2, 80), (40, 4, 151), (10**6, 4, 151)]
)
def test_more_items_take_a_tenth_of_the_training(train_seconds, batches, expected):
    candidate = make_candidate(prompt_tokens=(), **ALL_ITEMS)
    seconds = add_general_items(make_durations(0), candidate, None)[0]["generate"].likely  # one batch of both models
    after, count = add_general_items(make_durations(train_seconds * seconds), candidate, None)
    assert count == expected
    assert after["generate"].likely == pytest.approx(batches * seconds)


def test_without_items_or_speed_no_time_is_planned():
    assert add_general_items(None, make_candidate(prompt_tokens=(), **ALL_ITEMS), None) == (None, 40)
    assert add_general_items(make_durations(9), make_candidate(prompt_tokens=(9,)), None) == (make_durations(9), 0)


def test_memory_of_general_replies_is_planned():
    without, with_items = (
        next(phase for phase in make_candidate(prompt_tokens=(9,), **items).phases if phase.name == "generate")
        for items in ({}, ALL_ITEMS)
    )
    assert with_items.activations > 10 * without.activations


@pytest.mark.parametrize(
    ("measured", "seconds"),
    [({"general": 3.0}, 2 * 3.0), ({"prefill": 0.5, "said": 0.1}, 2 * (0.5 * 60 / 30 + 31 * 0.1))],
)
def test_a_benchmark_times_a_batch(measured, seconds):
    candidate = make_candidate(prompt_tokens=(30,) * 40, **ALL_ITEMS)
    benchmark = MachineBenchmark((2, 8), (measured, measured), candidate.workload, 50)
    after, count = add_general_items(make_durations(1), candidate, benchmark)
    assert count == 40
    assert after["generate"].likely == pytest.approx(seconds)


@ALL
def test_run_and_eval_ask_the_same_items(cache_home, tmp_path, own_file, capsys):
    settings = ["--set", f"output.directory={tmp_path}", "--set", f"evaluation.general={own_file}"]
    assert main(["sft", "recipes/smoke.yaml", "--json", *settings]) == 0
    result = json.loads(capsys.readouterr().out)
    run = tmp_path / "smoke-1"
    assert result["general"]["items"] == 3
    comparison = json.loads((run / "comparison.json").read_text())
    assert [answer["prompt"] for answer in comparison["general"]["answers"]] == [
        "Say one.",
        "Say two.",
        "Say anna.keller@gmx.de.",
    ]
    own_file.unlink()
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["general"] == result["general"]
    assert main(["eval", str(run), "--general", "off", "--json"]) == 0
    assert "general" not in json.loads(capsys.readouterr().out)
    assert main(["eval", str(run), "--general", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["general"]["items"] == 88
    assert main(["eval", str(run / "adapter"), "--general", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["general"]["available"] == 88
    (run / "general.jsonl").write_text("{}\n")
    assert main(["eval", str(run), "--json"]) != 0
