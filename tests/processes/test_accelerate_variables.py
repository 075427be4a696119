"""`accelerate launch` starts what torchrun starts: its settings are refused or have no effect, and a line says so."""

import logging

import pytest

from lora_chat.errors import UsageError
from lora_chat.processes.rank import Rank, read_rank, remove_group_variables

# As accelerate 1.15 sets them for `accelerate launch --num_processes 2 --multi_gpu`, without torchrun's.
NEUTRAL = {
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
}
SECOND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
CPU = {"ACCELERATE_USE_CPU": "True", **ADDRESS}


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, logger="lora_chat")
    return caplog


def test_settings_that_ask_for_nothing_are_removed_in_silence(log):
    environment = {**NEUTRAL, "ACCELERATE_USE_CPU": "False", "KMP_BLOCKTIME": "1"}
    assert read_rank(environment) == Rank()
    assert environment == {"KMP_BLOCKTIME": "1"}
    assert log.messages == []


@pytest.mark.parametrize(
    ("name", "value", "flag", "decides"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--mixed_precision", "quantization.dtype"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "--mixed_precision", "quantization.dtype"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--dynamo_backend", "training.fast_path"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--gradient_accumulation_steps", "effective_batch_size"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "--gradient_clipping", "training.max_grad_norm"),
        ("ACCELERATE_USE_CPU", "True", "--cpu", "base.device"),
    ],
)
def test_a_setting_without_effect_is_removed_and_reported_once(log, name, value, flag, decides):
    environment = {**NEUTRAL, name: value}
    read_rank(environment)
    assert environment == {}
    (line,) = log.messages
    assert flag in line and f"{name}={value}" in line and decides in line


def test_only_the_first_process_reports(log):
    for rank in ("1", "0"):
        environment = {
            **NEUTRAL,
            **SECOND,
            **ADDRESS,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "ACCELERATE_MIXED_PRECISION": "bf16",
        }
        read_rank(environment)
        remove_group_variables(environment)
        assert environment == {}
        assert len(log.messages) == (rank == "0")


@pytest.mark.parametrize("prefix", ["FSDP_VERSION", "MEGATRON_LM_TP_DEGREE", "PARALLELISM_CONFIG_TP_SIZE"])
def test_settings_of_modes_are_removed(prefix):
    environment = {prefix: "2"}
    read_rank(environment)
    assert environment == {}


@pytest.mark.parametrize("value", ["true", "True", " 1 ", "yes"])
@pytest.mark.parametrize("mode", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_a_mode_that_splits_the_model_is_refused(mode, value):
    with pytest.raises(UsageError, match=rf"--use_{mode.lower()}.*Fix: start with.*base\.shard=true"):
        read_rank({**NEUTRAL, **SECOND, **ADDRESS, f"ACCELERATE_USE_{mode}": value})


def test_a_single_process_on_a_cpu_says_that_it_is_one(log):
    environment = {**NEUTRAL, **CPU}
    assert read_rank(environment) == Rank()
    assert environment == {}
    assert "one process on a CPU" in log.messages[0] and "torchrun --nproc-per-node N" in log.messages[0]


def test_single_processes_on_several_machines_are_refused():
    with pytest.raises(UsageError, match=r"each machine would train a run of all data \(MASTER_ADDR=node1\).*--nnodes"):
        read_rank({**NEUTRAL, **CPU, "MASTER_ADDR": "node1"})


@pytest.mark.parametrize(
    "group", [{"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, {"PMI_RANK": "0", "PMI_SIZE": "1"}, SECOND]
)
def test_processes_with_numbers_are_not_taken_for_a_single_start(log, group):
    read_rank({**NEUTRAL, **CPU, "MASTER_ADDR": "node1", **group})
    assert not any("one process on a CPU" in message for message in log.messages)
