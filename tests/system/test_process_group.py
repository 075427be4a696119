"""Training runs in one process; what several processes would do is refused before anything is written."""

import os

import pytest

from lora_chat.cli import main
from lora_chat.errors import UsageError
from lora_chat.system.process_group import require_single_process


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "2"),
        ("RANK", "1"),
        ("LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "3"),
        ("PMI_SIZE", "2"),
        ("PMI_RANK", "1"),
        ("MV2_COMM_WORLD_SIZE", "2"),
        ("MPI_LOCALRANKID", "1"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "1"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
    ],
)
def test_sft_refuses_one_of_several_processes_before_it_writes(monkeypatch, tmp_path, capsys, name, value):
    monkeypatch.setenv(name, value)
    code = main(["sft", "recipes/smoke.yaml", "--set", f"output.directory={tmp_path / 'runs'}"])
    text = capsys.readouterr().err
    assert code == 2
    assert f"{name}={value}" in text
    assert "Fix: start `lora-chat sft` without" in text
    assert not (tmp_path / "runs").exists()


def test_the_first_of_several_processes_is_refused_too():
    with pytest.raises(UsageError, match="WORLD_SIZE=2"):
        require_single_process({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"})


def test_a_group_of_one_process_becomes_a_usual_process():
    environment = {
        **{"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        **{"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "bf16", "HOME": "/home/a"},
    }
    require_single_process(environment)
    assert environment == {"ACCELERATE_MIXED_PRECISION": "bf16", "HOME": "/home/a"}


@pytest.mark.parametrize("environment", [{}, {"RANK": ""}, {"LOCAL_RANK": "-1"}, {"WORLD_SIZE": "many"}])
def test_other_environments_are_accepted(environment):
    require_single_process(environment)


def test_other_commands_run_beside_a_process_group(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["recipe", "recipes/smoke.yaml"]) == 0
    assert os.environ["WORLD_SIZE"] == "2"
