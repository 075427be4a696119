"""`lora-chat runs` lists good, interrupted, used and damaged runs, and acts on no stranger's text."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.runs.lock import lock_run_folder

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-of-version-1" / "smoke-1"
PARCEL = Path(__file__).parents[1] / "sharing" / "parcels" / "version-2.lorachat"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Return a folder with a finished run, and make its parent the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    copy_run(tmp_path / "runs", "good-1")
    return tmp_path / "runs"


def copy_run(folder, name, without=()):
    shutil.copytree(OLD_RUN, folder / name)
    for part in without:
        path = folder / name / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder / name


def list_as_json(capsys, *arguments):
    assert main(["runs", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def states(listed):
    return {Path(run["path"]).name: run["state"] for run in listed["runs"]}


def test_lists_a_finished_run_with_its_figures(runs, capsys):
    run = list_as_json(capsys)["runs"][0]
    assert (run["state"], run["base"], run["data"]) == ("finished", "tiny-random", "dialogues.jsonl")
    assert (run["dialogues"], run["steps"], run["planned_steps"]) == (6, 4, 4)
    assert run["size"] == sum(path.stat().st_size for path in (runs / "good-1").rglob("*") if path.is_file())
    assert not run["signed_by_you"]


def test_shows_an_interrupted_run_with_the_command_that_continues_it(runs, capsys):
    copy_run(runs, "my run-1", ["result.json"])
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "interrupted at step 4" in out
    assert "continue: lora-chat sft 'runs/my run-1/recipe.yaml' --resume 'runs/my run-1'" in out


def test_shows_a_run_in_which_a_process_trains(runs, capsys):
    used = copy_run(runs, "used-1", ["result.json"])
    with lock_run_folder(used):
        assert states(list_as_json(capsys))["used-1"] == "in use"
    assert states(list_as_json(capsys))["used-1"] == "interrupted"


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "plan.json").unlink(),
        lambda run: shutil.rmtree(run / "adapter"),
        lambda run: (run / "result.json").write_text("[1]"),
        lambda run: (run / "result.json").write_text("[" * 100_000),
        lambda run: (run / "plan.json").write_bytes(b"\xff"),
        pytest.param(
            lambda run: os.mkfifo(run / "pipe"),
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs"),
        ),
        lambda run: (run / "data.json").unlink() or (run / "data.json").symlink_to("/dev/zero"),
    ],
)
def test_shows_a_damaged_run_and_all_others(runs, capsys, damage):
    damage(copy_run(runs, "bad-1"))
    listed = list_as_json(capsys)
    assert states(listed) == {"good-1": "finished", "bad-1": "damaged"}
    assert all(run["problem"] for run in listed["runs"] if run["state"] == "damaged")


def test_odd_values_and_names_do_not_act_on_the_terminal(runs, capsys):
    evil = copy_run(runs, "evil\x1b[31m\n-1")
    plan = {"base": {"name": "\x1b]0;title\x07" * 50}, "data": {"train": [{"path": 7}, None, {"hub": "\u202eo/n"}]}}
    (evil / "plan.json").write_text(json.dumps(plan))
    (evil / "result.json").write_text(json.dumps({"steps": "many", "verdict": ["\x1b[2J"], "planned_steps": -1}))
    os.utime(evil / "result.json", (2**40, 2**40))
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert out.isprintable() or all(c.isprintable() or c == "\n" for c in out)
    assert len(out.splitlines()) == 3


def test_lists_the_newest_run_first(runs, capsys):
    for name, time in (("a-1", 1_000_000), ("b-1", 3_000_000), ("c-1", 2_000_000)):
        for path in copy_run(runs, name).iterdir():
            os.utime(path, (time, time))
    shutil.rmtree(runs / "good-1")
    assert [*states(list_as_json(capsys))] == ["b-1", "c-1", "a-1"]


def test_lists_parcels_with_the_base_that_they_state(runs, capsys):
    shutil.copyfile(PARCEL, runs / "x.lorachat")
    (runs / "bad.lorachat").write_bytes(b"PK\3\4")
    parcels = {Path(parcel["path"]).name: parcel["base"] for parcel in list_as_json(capsys)["parcels"]}
    assert parcels == {"x.lorachat": "friend/tiny", "bad.lorachat": None}


def test_lists_the_output_folder_of_a_recipe(runs, capsys):
    Path("my.yaml").write_text("data: {train: x.jsonl}\noutput: {directory: other}\n")
    copy_run(Path("other"), "there-1")
    assert [*states(list_as_json(capsys, "my.yaml"))] == ["there-1"]


def test_a_missing_folder_is_an_error_only_if_it_was_named(runs, capsys):
    shutil.rmtree(runs)
    assert list_as_json(capsys)["runs"] == []
    assert main(["runs", "no/such"]) == 2
