"""`lora-chat diff` shows values of two runs that differ, and counts the others."""

import json
import shutil
from pathlib import Path

import pytest
from report_runs import figures_of

from lora_chat.cli import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD, NEWER = (FIXTURES / name / "smoke-1" for name in ("run-of-version-1", "run-of-version-2"))


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Return two equal runs in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("a-1", "b-1"):
        shutil.copytree(OLD, tmp_path / name)
    return tmp_path / "a-1", tmp_path / "b-1"


def change(path, *keys, to):
    content = json.loads(path.read_text())
    section = content
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = to
    path.write_text(json.dumps(content))


def diff_as_json(capsys, *arguments):
    assert main(["diff", *map(str, arguments), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    return {section["name"]: section for section in answer["sections"]}, answer["notes"]


def differing(section):
    return {d["name"]: (d["first"], d["second"]) for d in section["differences"]}


def test_equal_runs_have_only_counts(pair, capsys):
    sections, notes = diff_as_json(capsys, "a-1", "b-1")
    assert [*sections] == ["settings", "data", "base", "versions", "machine", "figures"]
    assert all(not section["differences"] and section["equal"] > 1 for section in sections.values())
    assert notes == []


def test_shows_each_kind_of_difference(pair, capsys):
    other = pair[1]
    change(other / "plan.json", "training", "epochs", to=3.0)
    change(other / "plan.json", "output", "name", to="other")
    change(other / "identity.json", "data.rows", to="f" * 64)
    change(other / "identity.json", "base.weights", to="e" * 64)
    change(other / "versions.json", "torch", to="2.14.0")
    change(other / "forecast.json", "device", "name", to="Intel Xeon")
    change(other / "data.json", "train_dialogues", to=7)
    change(other / "result.json", "steps", to=5)
    (other / "validation.jsonl").write_text("{}\n")
    sections, _ = diff_as_json(capsys, "a-1", "b-1")
    found = {name: differing(section) for name, section in sections.items()}
    assert found["settings"] == {"training.epochs": (2.0, 3.0)}
    assert found["data"].keys() == {"data.rows", "validation.jsonl", "train_dialogues"}
    assert found["base"].keys() == {"base.weights"}
    assert found["versions"] == {"torch": ("2.13.0+cpu", "2.14.0")}
    assert found["machine"] == {"name": ("AMD EPYC", "Intel Xeon")}
    assert found["figures"] == {"steps": (4, 5)}


@pytest.mark.parametrize(
    ("base", "adapted", "interval", "note"),
    [
        (3.5, 1.5, [1.4, 1.6], "more than the intervals"),
        (3.5, 1.95, [1.6, 2.3], "within the interval"),
        (3.5, 1.75, [1.65, 1.92], "the intervals overlap"),
        (3.9, 1.95, [1.6, 2.3], "not comparable: the base has other values"),
        (3.5, 1.95, None, "no interval"),
    ],
)
def test_says_whether_a_figure_differs_by_more_than_its_interval(pair, capsys, base, adapted, interval, note):
    first = {**figures_of(3.5, 2.0), "adapted_interval": [1.9, 2.1]}
    second = {**figures_of(base, adapted), "adapted_interval": interval}
    for run, figures in zip(pair, (first, second), strict=True):
        (run / "comparison.json").write_text(json.dumps({"figures": {"validation_loss": figures}}))
    sections, _ = diff_as_json(capsys, "a-1", "b-1")
    assert [d["note"] for d in sections["figures"]["differences"]] == [note]


def test_compares_runs_of_two_versions_by_the_fields_of_both(capsys):
    sections, notes = diff_as_json(capsys, OLD, NEWER)
    assert sections["base"]["differences"] == []
    assert sections["base"]["equal"] == 3
    assert sections["settings"]["differences"] == []
    assert notes == []


def test_compares_the_settings_of_a_run_with_a_recipe(pair, capsys):
    sections, notes = diff_as_json(capsys, "a-1", "smoke")
    assert [*sections] == ["settings"]
    assert {*differing(sections["settings"])} == {"data.train", "evaluation.each_epoch"}
    assert "recipe" in notes[0]


def test_the_table_shows_where_long_values_differ(pair, capsys):
    for run, end in zip(pair, ("one.jsonl", "two.jsonl"), strict=True):
        change(run / "plan.json", "data", "train", to="/data/" + "x" * 300 + end)
    change(pair[1] / "plan.json", "training", "learning_rate", to=0.0100000001)
    assert main(["diff", "a-1", "b-1"]) == 0
    out = capsys.readouterr().out
    assert "one.jsonl" in out
    assert "two.jsonl" in out
    assert "0.0100000001" in out
    assert max(map(len, out.splitlines())) < 120


def test_texts_of_a_stranger_do_not_act_on_the_terminal(pair, capsys):
    change(pair[1] / "versions.json", "torch\x1b[2J\n", to="\x1b]0;title\x07")
    change(pair[1] / "plan.json", "base", "name", to=7)
    assert main(["diff", "a-1", "b-1"]) == 0
    captured = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in captured.out + captured.err)
    assert "as written" in captured.err


def test_refuses_links_parcels_and_missing_paths(pair, capsys):
    (pair[1] / "link").symlink_to("/etc/passwd")
    assert main(["diff", "a-1", "b-1"]) == 7
    assert main(["diff", "a-1", "x.lorachat"]) == 2
    assert main(["diff", "a-1", "missing-1"]) == 2
