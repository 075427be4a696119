"""Scripts of `launch/kubernetes.yaml` and `launch/skypilot.yaml` train on two nodes, stop on SIGTERM and continue."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
STEPS = 200
_RECIPE = f"""
base: {{name: tiny-random}}
quantization: {{mode: none}}
data: {{train: dialogues.jsonl, validation_share: 0.25}}
training: {{max_steps: {STEPS}, epochs: 1000, effective_batch_size: 4}}
evaluation: {{samples: 0, general: false, each_epoch: false}}
checkpoint: {{every_steps: 20}}
"""

pytestmark = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


def kubernetes(folder, node, port):
    """Return the script of a pod and the variables that Kubeflow Trainer sets."""
    job = list(yaml.safe_load_all((ROOT / "launch/kubernetes.yaml").read_text()))[1]["spec"]["trainer"]
    variables = {entry["name"]: entry["value"].replace("/shared", str(folder)) for entry in job["env"]}
    group = {"NNODES": 2, "NPROC_PER_NODE": 1, "NODE_RANK": node, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return job["command"][2], variables | {f"PET_{name}": str(value) for name, value in group.items()}


def skypilot(folder, node, port):
    """Return the script of a node and the variables that SkyPilot sets."""
    task = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    group = {"NUM_NODES": 2, "NUM_GPUS_PER_NODE": 1, "NODE_RANK": node, "NODE_IPS": "127.0.0.1\n127.0.0.1"}
    variables = {f"SKYPILOT_{name}": str(value) for name, value in group.items()} | {"HOME": str(folder)}
    return task["run"].replace("29500", str(port)), variables | {"RECIPE": "recipe.yaml"}


@pytest.fixture
def shared(tmp_path):
    """A shared folder with the recipe, and programs that stand for the installation of a node."""
    (tmp_path / "recipe.yaml").write_text(_RECIPE)
    shutil.copy(ROOT / "recipes/smoke/dialogues.jsonl", tmp_path / "dialogues.jsonl")
    for path, text in (
        ("bin/pip", "exit 0"),
        ("bin/torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"'),
        ("lora-chat/bin/torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"'),
    ):
        program = tmp_path / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    return tmp_path


def start(tool, folder):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    nodes = []
    for node in range(2):
        script, variables = tool(folder, node, port)
        environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        log = (folder / f"node-{node}.log").open("a")
        command = ["bash", "-c", script.replace("/shared", str(folder))]
        nodes.append(subprocess.Popen(command, cwd=folder, env={**environment, **variables}, stdout=log, stderr=log))
    return nodes


def wait(nodes, seconds):
    try:
        return [node.wait(seconds) for node in nodes]
    finally:
        for node in nodes:
            node.kill()


def read_steps(folder):
    lines = (folder / "runs/recipe-1/metrics.jsonl").read_text().splitlines()
    return [step["step"] for step in map(json.loads, lines) if "loss" in step]


@pytest.mark.parametrize("tool", [kubernetes, skypilot])
def test_two_nodes_stop_on_sigterm_and_continue_with_the_same_command(shared, tool):
    nodes = start(tool, shared)
    deadline = time.monotonic() + 180
    while not list(shared.glob("runs/recipe-1/checkpoints/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    nodes[1].send_signal(signal.SIGTERM)  # one node is taken, and the other one learns of it
    codes = wait(nodes, 100)
    logs = "".join((shared / f"node-{node}.log").read_text() for node in range(2))
    assert all(codes), logs
    stopped = read_steps(shared)
    assert 0 < len(stopped) < STEPS, logs
    assert wait(start(tool, shared), 240) == [0, 0], (shared / "node-0.log").read_text()[-3000:]
    assert read_steps(shared) == list(range(1, STEPS + 1))
    assert f"after step {stopped[-1]}" in "".join((shared / f"node-{node}.log").read_text() for node in range(2))
    assert {path.name for path in (shared / "runs").glob("recipe-*")} == {"recipe-1"}
    assert (shared / "cache").is_dir() and (shared / "config").is_dir()
