"""The example files of `launch/` start one command and agree with the schemas of the tools that read them."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
PYTHON = os.environ.get("LORA_CHAT_LAUNCH_PYTHON")
"""Python of an environment with the packages of `make launch-test`."""
WITH_TOOLS = pytest.mark.skipif(not PYTHON, reason="on demand: make launch-test")


def read(name):
    return (LAUNCH / name).read_text(encoding="utf-8")


def read_job():
    return list(yaml.safe_load_all(read("kubernetes.yaml")))[1]["spec"]


def read_pod():
    patch = read_job()["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    return patch["template"]["spec"]["template"]["spec"]


def shell_scripts():
    task = yaml.safe_load(read("skypilot.yaml"))
    return {
        "slurm": read("slurm.sh"),
        "kubernetes": read_job()["trainer"]["command"][2],
        "skypilot": task["run"],
        "skypilot setup": task["setup"],
        "skypilot hook": task["config"]["hooks"][0]["run"],
    }


@pytest.mark.parametrize("tool", ["slurm", "kubernetes", "skypilot"])
def test_every_tool_starts_the_same_command(tool):
    script = shell_scripts()[tool].replace("\\\n", " ")
    assert re.search(r'-m lora_chat sft "\$\w+" --resume\b', script)


@pytest.mark.parametrize("name", list(shell_scripts()))
def test_scripts_are_valid_bash(name):
    assert subprocess.run(["bash", "-n"], input=shell_scripts()[name], text=True).returncode == 0


@pytest.mark.parametrize("tool", ["kubernetes", "skypilot"])
def test_a_shell_is_replaced_so_that_torchrun_receives_the_signal(tool):
    last_command = shell_scripts()[tool].replace("\\\n", " ").strip().splitlines()[-1]
    assert re.match(r"exec (\S+/)?torchrun ", last_command)


@pytest.mark.parametrize("tool", ["slurm", "kubernetes", "skypilot"])
def test_the_checkpoint_has_less_time_than_the_tool_gives(tool):
    timeout = int(re.search(r"--shutdown-timeout (\d+)", shell_scripts()[tool])[1])
    notice = {
        "slurm": lambda: int(re.search(r"--signal=B:USR1@(\d+)", read("slurm.sh"))[1]),
        "kubernetes": lambda: read_pod()["terminationGracePeriodSeconds"],
        "skypilot": lambda: yaml.safe_load(read("skypilot.yaml"))["config"]["hooks"][0]["timeout"],
    }[tool]()
    assert 30 < timeout < notice


def test_runs_cache_and_key_are_in_the_shared_folder():
    variables = {entry["name"]: entry["value"] for entry in read_job()["trainer"]["env"]}
    mounts = [mount["mountPath"] for mount in read_pod()["containers"][0]["volumeMounts"]]
    assert (variables["XDG_CACHE_HOME"], variables["XDG_CONFIG_HOME"]) == ("/shared/cache", "/shared/config")
    assert "/shared" in mounts
    assert "cd /shared\n" in shell_scripts()["kubernetes"]
    task = yaml.safe_load(read("skypilot.yaml"))
    assert list(task["volumes"]) == ["/shared"]
    assert "XDG_CACHE_HOME=/shared/cache XDG_CONFIG_HOME=/shared/config" in task["run"]
    assert "output.directory=/shared/runs" in task["run"]


def test_the_volume_of_each_tool_is_the_volume_that_is_mounted():
    claim, _ = yaml.safe_load_all(read("kubernetes.yaml"))
    names = [
        volume["persistentVolumeClaim"]["claimName"] for volume in read_pod()["volumes"] if "emptyDir" not in volume
    ]
    assert names == [claim["metadata"]["name"]]
    assert (
        yaml.safe_load(read("skypilot.yaml"))["volumes"]["/shared"]
        == yaml.safe_load(read("skypilot-volume.yaml"))["name"]
    )


def test_versions_are_those_of_the_project():
    torch = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert read_job()["trainer"]["image"].startswith(f"pytorch/pytorch:{torch}-cuda")
    base = re.search(r"^SMOL := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert base in shell_scripts()["skypilot setup"]


def check(files):
    command = [PYTHON, str(Path(__file__).parent / "check_schemas.py")]
    result = subprocess.run(command, input=json.dumps(files), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@WITH_TOOLS
@pytest.mark.parametrize("kind", ["kubernetes", "skypilot", "skypilot-volume"])
def test_files_match_the_schemas_of_the_tools(kind):
    assert check({kind: read(f"{kind}.yaml")}) == {kind: None}


@WITH_TOOLS
@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("kubernetes", "terminationGracePeriodSeconds", "terminationGracePeriod"),
        ("kubernetes", "numNodes: 2", "numNodes: two"),
        ("kubernetes", "accessModes: [ReadWriteMany]", "accessMode: ReadWriteMany"),
        ("skypilot", "num_nodes: 2", "nodes: 2"),
        ("skypilot", "accelerators: A100:4", "accelerator: A100:4"),
        ("skypilot", "events: [preemption]", "events: [preempted]"),
        ("skypilot-volume", "k8s-pvc", "pvc"),
    ],
)
def test_a_mistake_in_a_file_is_found(kind, old, new):
    text = read(f"{kind}.yaml")
    assert old in text
    assert check({kind: text.replace(old, new)})[kind]


@WITH_TOOLS
@pytest.mark.parametrize("name", list(shell_scripts()))
def test_shellcheck_finds_nothing(name):
    command = [str(Path(PYTHON).parent / "shellcheck"), "--shell=bash", "-"]
    result = subprocess.run(command, input=shell_scripts()[name], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
