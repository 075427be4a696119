"""Every way to start two processes trains the same adapter, byte by byte."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TORCHRUN = ("-m", "torch.distributed.run")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "bf16")
AGENT = (*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "a")
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
RANKS = [{"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank} for rank in "01"]


def run(folder, *starts):
    """Run the starts at the same time, each with its arguments for Python and its variables; return the digest."""
    settings = ["--set", f"output.directory={folder}", "--set", "evaluation.samples=0"]
    processes = [
        subprocess.Popen(
            [sys.executable, *before, "-m", "lora_chat", "sft", "recipes/smoke.yaml", *settings, *after],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for before, after, variables in starts
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(starts), outputs
    (adapter,) = folder.glob("smoke-*/adapter/adapter_model.safetensors")
    return hashlib.sha256(adapter.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The adapter of `--processes 2`."""
    return run(tmp_path_factory.mktemp("launched"), ((), ("--processes", "2"), {}))


def start_torchrun(folder, port):
    return run(folder, ((*TORCHRUN, "--standalone", "--nproc-per-node", "2"), (), {}))


def start_two_agents(folder, port):
    agent = (*AGENT, "--rdzv-endpoint", f"localhost:{port}")
    return run(folder, (agent, (), {}), (agent, (), {}))


def start_accelerate(folder, port):
    return run(folder, ((*ACCELERATE, "--main_process_port", str(port)), (), {}))


def start_mpi(folder, port):
    return run(folder, *(((), (), {**MPI, **rank, "MASTER_PORT": str(port)}) for rank in RANKS))


@pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
@pytest.mark.parametrize("start", [start_torchrun, start_two_agents, start_accelerate, start_mpi])
def test_starts_train_the_same_bytes(launched, tmp_path, start):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    assert start(tmp_path, port) == launched
