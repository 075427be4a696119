"""The number of a process is read from its variables, and contradictions are refused before anything is written."""

import os

import pytest

from lora_chat.cli import main
from lora_chat.errors import UsageError
from lora_chat.processes.rank import (
    Rank,
    read_rank,
    refuse_several_processes,
    refuse_windows,
    remove_group_variables,
)

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SECOND = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **ADDRESS}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        (SECOND, Rank(1, 4, 1, 2)),
        ({**SECOND, "RANK": "3", "TORCHELASTIC_RUN_ID": "a"}, Rank(3, 4, 1, 2, is_from_agent=True)),
        ({**SECOND, "PMI_RANK": "0", "PMI_SIZE": "2"}, Rank(1, 4, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", **ADDRESS}, Rank(1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", **ADDRESS}, Rank(2, 3)),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", **ADDRESS},
            Rank(1, 2, 1, 2),
        ),
        ({"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2", **ADDRESS}, Rank(0, 2)),
    ],
)
def test_reads_the_number_of_each_starter(environment, rank):
    before, environment = environment, dict(environment)
    assert read_rank(environment) == rank
    assert environment == before, "the variables are needed until the processes are connected"
    remove_group_variables(environment)
    assert environment == {}


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set, only WORLD_SIZE=2"),
        ({"RANK": "1"}, "WORLD_SIZE is not set, only RANK=1"),
        ({"LOCAL_RANK": "1"}, "RANK is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK is not set"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "3"}, "OMPI_COMM_WORLD_LOCAL_RANK=3"),
        ({"PMI_SIZE": "2"}, "PMI_RANK is not set"),
        ({"PMI_RANK": "1"}, "PMI_SIZE is not set"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_RANK is not set"),
        ({"MPI_LOCALRANKID": "1"}, "MPI_LOCALRANKID=1"),
        ({"WORLD_SIZE": "many", "RANK": "0"}, "WORLD_SIZE=many is not a number"),
        ({**SECOND, "RANK": "1.5"}, "RANK=1.5 is not a number"),
        ({**SECOND, "RANK": "٣"}, "is not a number"),
        ({**SECOND, "RANK": "-2"}, "RANK=-2 is not a number"),
        ({**SECOND, "WORLD_SIZE": "9" * 40}, "is not a number"),
        ({**SECOND, "RANK": "4"}, "contradict each other"),
        ({**SECOND, "LOCAL_RANK": "2"}, "contradict each other"),
        ({**SECOND, "RANK": "0"}, "contradict each other"),
        ({**SECOND, "LOCAL_WORLD_SIZE": "5"}, "contradict each other"),
        ({**SECOND, "WORLD_SIZE": "0"}, "contradict each other"),
        ({**SECOND, "LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is not set"),
        ({**SECOND, "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({**SECOND, "MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({**SECOND, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is not a port"),
        ({**SECOND, "MASTER_ADDR": "a b"}, "MASTER_ADDR=a b is not the name"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "MPI does not set it"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "PMI_RANK": "1", "PMI_SIZE": "2"}, "PMI_SIZE=2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "--use_deepspeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "--use_fsdp"),
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "--use_megatron_lm"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "--use_parallelism_config"),
    ],
)
def test_refuses_numbers_that_cannot_work(environment, problem):
    with pytest.raises(UsageError) as error:
        read_rank(environment)
    assert problem in str(error.value)
    assert "Fix: " in str(error.value)


def test_a_group_of_one_process_becomes_a_usual_process():
    environment = {
        **{"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **ADDRESS},
        **{"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_USE_AGENT_STORE": "True"},
        **{"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "bf16", "HOME": "/home/a"},
    }
    assert read_rank(environment) == Rank()
    assert environment == {"HOME": "/home/a"}


@pytest.mark.parametrize(
    "environment", [{}, {"RANK": ""}, {"LOCAL_RANK": "-1"}, {"WORLD_SIZE": "1"}, {"PMI_RANK": "0"}]
)
def test_other_environments_are_a_single_process(environment):
    assert read_rank(environment) == Rank()


def test_sft_refuses_half_a_group_before_it_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code = main(["sft", "recipes/smoke.yaml", "--set", f"output.directory={tmp_path / 'runs'}"])
    text = capsys.readouterr().err
    assert code == 2
    assert "WORLD_SIZE=2" in text and "torchrun" in text
    assert not (tmp_path / "runs").exists()


def test_other_commands_run_beside_a_process_group(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["recipe", "recipes/smoke.yaml"]) == 0
    assert os.environ["WORLD_SIZE"] == "2"


def test_other_commands_refuse_several_processes():
    with pytest.raises(UsageError, match=r"lora-chat eval uses one process.*WORLD_SIZE=4"):
        refuse_several_processes(SECOND, "eval")
    refuse_several_processes({"WORLD_SIZE": "2", "RANK": "1"}, "eval")
    refuse_several_processes({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "eval")


def test_windows_is_refused(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(UsageError, match="WSL"):
        refuse_windows()
