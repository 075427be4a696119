"""Program that trains in two processes many times, kills one of them each time, and resumes with 1, 2 or 3 processes.

It is started like harness.py. Its first argument is a file: `{"out": DIR, "count": N or "all", "seed": ...}`. It prints
one JSON object per point.
"""

import ctypes
import gc
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import zlib
from itertools import cycle
from pathlib import Path

from harness import MODES, RECIPE, replace_plots, write_held_out

SECONDS = 240
SETTINGS = ("--set", "training.learning_rate=0.01", "--set", "evaluation.general=off")
KILLED_STEP = 2


def main():
    from lora_chat.cli import main as lora_chat_main

    task = json.loads(Path(sys.argv[1]).read_text())
    out = Path(task["out"]).resolve()
    injector = ctypes.CDLL(os.environ["LD_PRELOAD"])
    held_out = write_held_out(out / "held-out.jsonl")
    replace_plots()

    def sft(folder, *options):
        settings = ("--set", f"output.directory={folder}", "--set", f"data.validation={held_out}", *SETTINGS)
        return lora_chat_main(["sft", *RECIPE, *settings, *options])

    def run_group(folder, count, *options, victim=None, kill=lambda log: None):
        """Run in `count` forks, of which one is prepared by `kill`. Return the exit codes and the operations."""
        log, port = out / "operations.txt", find_free_port()
        log.unlink(missing_ok=True)
        children = []
        for rank in range(count):
            child = os.fork()
            if not child:
                if count > 1:
                    os.environ.update(make_variables(rank, count, port))
                with (out / f"output-{rank}.txt").open("w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                record_steps(folder / f"steps-{rank}.jsonl")
                if rank == victim:
                    kill(log)
                code = sft(folder, *options)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            children.append(child)
        codes = wait_for(children)
        return codes, log.read_text().splitlines() if log.exists() else []

    folder = out / "complete"
    folder.mkdir()
    sft(out / "warm")  # imports, caches
    gc.collect()
    gc.freeze()
    codes, operations = run_group(
        folder, 2, victim=0, kill=lambda log: injector.faults_arm(str(folder).encode(), 0, 0, str(log).encode())
    )
    assert codes == [0, 0], (out / "output-0.txt").read_text()
    expected = read_result(folder)
    points = choose_points(task, operations)
    for number, ((victim, place), processes) in enumerate(zip(points, cycle((1, 2, 3)))):
        started = time.monotonic()
        folder = out / f"point-{number}"
        folder.mkdir()

        def kill(log, folder=folder, place=place):
            if isinstance(place, int):
                injector.faults_arm(str(folder).encode(), MODES.index("kill"), place, str(log).encode())
            else:
                kill_in(*place)

        codes, _ = run_group(folder, 2, victim=victim, kill=kill)
        ended = round(time.monotonic() - started, 2)
        first_output = (out / f"output-{1 - victim}.txt").read_text()
        if (folder / "steps-0.jsonl").exists():  # a process that is killed while it connects has no step
            shutil.move(folder / "steps-0.jsonl", folder / "earlier-steps.jsonl")
        resumed, _ = run_group(folder, processes, "--resume")
        result = {
            "victim": victim,
            "point": operations[place - 1] if isinstance(place, int) else place,
            "exit_codes": codes,
            "seconds": ended,
            "processes": processes,
            "resumed": resumed,
            "differences": find_differences(read_result(folder), expected, same_bytes=processes == 2),
            "output": first_output,
            "resumed_output": (out / "output-0.txt").read_text(),
        }
        print(json.dumps(result), flush=True)
        shutil.rmtree(folder, ignore_errors=True)


def find_free_port():
    """Return a port of this machine that nothing uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def make_variables(rank, count, port):
    """Return the variables with which torchrun numbers its processes."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {name: str(value) for name, value in values.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def wait_for(children):
    """Return the exit codes of processes, negative for a signal; None for one that hangs."""
    codes, deadline = [None] * len(children), time.monotonic() + SECONDS
    while None in codes and time.monotonic() < deadline:
        for number, child in enumerate(children):
            if codes[number] is None and (status := os.waitpid(child, os.WNOHANG))[0]:
                codes[number] = os.waitstatus_to_exitcode(status[1])
        time.sleep(0.01)
    for number, child in enumerate(children):
        if codes[number] is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return codes


def record_steps(path):
    """Write the number, the dialogues and the supervised tokens of each step that this process begins."""
    from lora_chat.training.trainer import PackedSFTTrainer

    stock = PackedSFTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        digest = zlib.crc32(str((inputs["row_ids"].tolist(), inputs["row_lengths"].tolist())).encode())
        with path.open("a") as file:
            file.write(json.dumps([self.state.global_step + 1, digest, inputs["supervised_tokens"]]) + "\n")
        return stock(self, model, inputs, *args, **kwargs)

    PackedSFTTrainer.training_step = training_step


def phases():
    """Return owner, name and call number of functions in which a process is killed."""
    from lora_chat.training.callbacks.agreement import StepAgreement
    from lora_chat.training.callbacks.nonfinite_guard import NonFiniteGuard
    from lora_chat.training.gradient_sum import GradientSum
    from lora_chat.training.trainer import PackedSFTTrainer

    return {
        "connecting": ("lora_chat.processes.connect", "connect", 1),
        "micro-batches": (PackedSFTTrainer, "_run_micro_batches", KILLED_STEP + 1),  # the first is the memory check
        "sum of gradients": (GradientSum, "sum_", KILLED_STEP),
        "optimizer": (NonFiniteGuard, "on_pre_optimizer_step", KILLED_STEP),
        "agreement": (StepAgreement, "on_step_end", KILLED_STEP),
        "checkpoint": (PackedSFTTrainer, "_save_checkpoint", KILLED_STEP),
        "commit": (StepAgreement, "on_save", KILLED_STEP),
        "validation": (PackedSFTTrainer, "score_rows", 2),
    }


def kill_in(phase):
    """Make this process kill itself when it enters a phase."""
    import importlib

    owner, name, call_number = phases()[phase]
    owner = importlib.import_module(owner) if isinstance(owner, str) else owner
    stock, calls = getattr(owner, name), []

    def call_or_die(*args, **kwargs):
        calls.append(0)
        if len(calls) == call_number:
            os.kill(os.getpid(), signal.SIGKILL)
        return stock(*args, **kwargs)

    setattr(owner, name, call_or_die)


def choose_points(task, operations):
    """Return pairs of the killed process and the number of its file operation, or its phase in a tuple.

    The operations are those from the commit of one step to that of the next, and the deletion of old checkpoints.
    """
    lines = [line.split(" ", 2)[1:] for line in operations]
    first = lines.index(["rename", f"/run-1/checkpoints/checkpoint-{KILLED_STEP - 1}/manifest.json"])
    last = lines.index(["rename", f"/run-1/checkpoints/checkpoint-{KILLED_STEP + 1}/manifest.json"])
    points = [(0, number) for number in range(first + 1, last + 2)]
    points += [(victim, (phase,)) for phase in phases() for victim in (0, 1)]
    return points if task["count"] == "all" else random.Random(task["seed"]).sample(points, int(task["count"]))


def read_result(folder):
    """Return the adapter, the metrics without times, and the dialogues of each step, of a run and its continuation."""
    from safetensors.torch import load_file

    run = folder / "run-1"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {}
    for name in ("earlier-steps.jsonl", "steps-0.jsonl"):
        if (folder / name).exists():
            records = [json.loads(line) for line in (folder / name).read_text().splitlines()]
            repeated = [step for step, *_ in records]
            assert repeated == sorted(set(repeated)), f"{name}: {repeated}"
            steps = {step: record for step, record in steps.items() if not records or step < records[0][0]}
            steps |= {step: record for step, *record in records}
    adapter = run / "adapter" / "adapter_model.safetensors"
    return load_file(adapter) if adapter.exists() else {}, rows, steps


def find_differences(result, expected, *, same_bytes):
    """Return what differs from an undisturbed run. Another number of processes may round otherwise."""
    (weights, rows, steps), (expected_weights, expected_rows, expected_steps) = result, expected
    differences = []
    if steps != expected_steps:
        differences.append(f"dialogues of steps: {steps} instead of {expected_steps}")
    names = [("step", "supervised_tokens") for _ in expected_rows]
    counts, expected_counts = (
        [[row.get(name) for name in each] for row, each in zip(found, names, strict=False)]
        for found in (rows, expected_rows)
    )
    if len(rows) != len(expected_rows) or counts != expected_counts:
        differences.append(f"metrics: {counts} instead of {expected_counts}")
    if weights.keys() != expected_weights.keys():
        return [*differences, "tensors of the adapter"]
    largest = max(
        float((weights[name].float() - value.float()).abs().max()) for name, value in expected_weights.items()
    )
    if largest > (0 if same_bytes else MAX_ROUNDING):
        differences.append(f"adapter: {largest}")
    return differences


MAX_ROUNDING = 0.02
"""Largest difference of a weight after 4 steps of 0.01, because the base computes in bf16."""


if __name__ == "__main__":
    main()
