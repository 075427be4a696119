"""The options of the launcher, and the variables of the processes that it starts."""

import subprocess

import pytest

from lora_chat.cli import main
from lora_chat.errors import UsageError
from lora_chat.processes import launch
from lora_chat.processes.launch import check_count, remove_option
from lora_chat.system.worker import interpreter_command


@pytest.mark.parametrize(
    ("arguments", "rest"),
    [
        (["sft", "a.yaml", "--processes", "2", "--json"], ["sft", "a.yaml", "--json"]),
        (["sft", "--processes=2", "a.yaml"], ["sft", "a.yaml"]),
        (["sft", "a.yaml", "--process-timeout", "2"], ["sft", "a.yaml", "--process-timeout", "2"]),
        (["sft", "--processes", "2", "--", "--processes"], ["sft", "--", "--processes"]),
    ],
)
def test_the_processes_get_the_other_arguments(arguments, rest):
    assert remove_option(arguments, "--processes") == rest


@pytest.mark.parametrize("count", ["0", "-1", "65", "1000000"])
def test_refuses_numbers_of_processes(count, capsys):
    assert main(["sft", "recipes/smoke.yaml", "--processes", count]) == 2
    assert "a number from 1 to 64 is needed" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "1e9"])
def test_refuses_times_without_progress(minutes, capsys):
    assert main(["sft", "recipes/smoke.yaml", "--processes", "2", "--process-timeout", minutes]) == 2
    assert "a number of minutes up to 10080" in capsys.readouterr().err


def test_torchrun_and_processes_exclude_each_other(monkeypatch):
    with pytest.raises(UsageError, match="torchrun or accelerate launch has started this one already"):
        check_count(2, {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"})
    check_count(2, {"RANK": "0", "WORLD_SIZE": "2"})


def test_a_wrong_recipe_starts_no_process(monkeypatch, capsys):
    monkeypatch.setattr("lora_chat.commands.sft.launch_processes", lambda *arguments: pytest.fail("started"))
    assert main(["sft", "missing.yaml", "--processes", "2"]) == 2
    assert capsys.readouterr().err.count("missing.yaml") == 1


def test_cores_are_divided_unless_the_user_has_chosen(monkeypatch):
    monkeypatch.setattr(launch, "_count_cores", lambda: 8)
    assert launch._child_variables(3, {})["OMP_NUM_THREADS"] == "2"
    assert launch._child_variables(16, {"OMP_NUM_THREADS": " "})["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in launch._child_variables(2, {"OMP_NUM_THREADS": "5"})


def test_the_interpreter_imports_nothing_from_the_working_directory(tmp_path):
    for name in ("lora_chat", "argparse", "logging"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    done = subprocess.run([*interpreter_command(), "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_exit_code_of_the_launcher_is_that_of_the_run(monkeypatch):
    monkeypatch.setattr("lora_chat.commands.sft.launch_processes", lambda count, arguments: 130)
    assert main(["sft", "recipes/smoke.yaml", "--processes", "2"]) == 130
