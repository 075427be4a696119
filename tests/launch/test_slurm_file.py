"""`launch/slurm.sh` starts every node with the same command, and stops and queues a job again without losing work."""

import json
import os
import signal
import sys
import time

import pytest
from fake_slurm import ROOT, FakeSlurm

_TASK = """#!/bin/bash
stop() { echo stopped; sleep 0.1; exit 1; }
trap stop TERM
echo "started $* threads=$OMP_NUM_THREADS"
for ((i = 0; i < 200; i++)); do [ -e "$FAKE/finish" ] && exit 0; sleep 0.02; done
exit 9
"""
STEPS = 300
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


@pytest.fixture
def slurm(tmp_path):
    fake = FakeSlurm(tmp_path, SLURM_GPUS_ON_NODE="4", SLURM_CPUS_PER_TASK="16")
    fake.environment["PYTHON"] = fake.add_program("task", _TASK)
    return fake


@pytest.fixture
def job(slurm):
    started = slurm.start("my recipe.yaml")
    yield started
    slurm.kill(started)
    started.communicate()


def test_every_node_starts_the_same_command_and_success_is_not_repeated(slurm, job):
    slurm.wait_for("started")
    (slurm.folder / "finish").touch()
    assert job.wait(10) == 0
    command = (
        "started -m torch.distributed.run --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint "
        "localhost:24567 --rdzv-id 1234567-0 --shutdown-timeout 240 -m lora_chat sft my recipe.yaml "
        "--resume threads=4\n"
    )
    assert [slurm.read(f"node-{node}.log") for node in range(2)] == [command, command]
    assert slurm.read("srun").split() == ["--kill-on-bad-exit=0", "--wait=0", "--cpus-per-task=16"]
    assert "requeue" not in slurm.read("scontrol")


def test_before_the_time_limit_the_tasks_stop_and_the_job_is_queued_again(slurm, job):
    slurm.wait_for("started")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(10) == 1
    slurm.wait_for("stopped")
    assert slurm.read("scancel") == "--signal=TERM 1234567\n"
    assert slurm.read("scontrol").splitlines()[1:] == ["requeue 1234567"]


def test_a_run_that_finishes_within_the_warning_is_not_queued_again(slurm, job):
    slurm.add_program("scancel", "#!/bin/bash\ntouch $FAKE/finish\n")
    slurm.wait_for("started")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(10) == 0
    assert "requeue" not in slurm.read("scontrol")


def test_a_cancelled_job_waits_for_its_tasks_and_is_not_queued_again(slurm, job):
    slurm.wait_for("started")
    job.send_signal(signal.SIGTERM)  # Slurm sends it to the tasks as well
    assert job.poll() is None
    for number in map(int, slurm.read("tasks").split()):
        os.kill(number, signal.SIGTERM)
    assert job.wait(10) == 1
    assert slurm.read("scancel") == ""
    assert "requeue" not in slurm.read("scontrol")


@ON_DEMAND
def test_two_nodes_train_one_run_stop_before_the_limit_and_continue_it(tmp_path):
    slurm = FakeSlurm(tmp_path, PYTHON=sys.executable, XDG_CACHE_HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    recipe = write_recipe(tmp_path)
    job = slurm.start(recipe)
    try:
        wait_for_checkpoint(slurm)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(120) != 0
    finally:
        slurm.kill(job)
    assert "requeue 1234567" in slurm.read("scontrol")
    stopped = read_steps(tmp_path)
    assert 0 < len(stopped) < STEPS
    (tmp_path / "tasks").unlink()
    (tmp_path / "scontrol").unlink()
    slurm.environment["SLURM_RESTART_COUNT"] = "1"
    job = slurm.start(recipe)
    try:
        assert job.wait(240) == 0, slurm.read("node-0.log") + slurm.read("node-1.log")
    finally:
        slurm.kill(job)
    assert "requeue" not in slurm.read("scontrol")
    assert [path.name for path in (tmp_path / "runs").glob("nodes-*")] == ["nodes-1"]
    assert read_steps(tmp_path) == list(range(1, STEPS + 1))
    text = slurm.read("node-0.log") + slurm.read("node-1.log")
    assert f"after step {stopped[-1]}" in text


def write_recipe(folder):
    recipe = folder / "nodes.yaml"
    recipe.write_text(
        "base: {name: tiny-random}\nquantization: {mode: none}\n"
        f"data: {{train: {ROOT / 'recipes/smoke/dialogues.jsonl'}, validation_share: 0.25}}\n"
        f"training: {{max_steps: {STEPS}, epochs: 1000, effective_batch_size: 4}}\n"
        f"output: {{directory: {folder / 'runs'}}}\nevaluation: {{samples: 0, general: false, each_epoch: false}}\n"
        "checkpoint: {every_steps: 20}\n"
    )
    return str(recipe)


def wait_for_checkpoint(slurm):
    deadline = time.monotonic() + 180
    while not list(slurm.folder.glob("runs/nodes-1/checkpoints/checkpoint-*")):
        assert time.monotonic() < deadline, slurm.read("node-0.log") + slurm.read("node-1.log")
        time.sleep(0.1)


def read_steps(folder):
    lines = (folder / "runs/nodes-1/metrics.jsonl").read_text().splitlines()
    return [step["step"] for step in map(json.loads, lines) if "loss" in step]
