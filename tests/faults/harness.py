"""Runs a whole fine-tuning again and again, with something going wrong each time, and resumes it.

Started with the injector in LD_PRELOAD. Everything is imported and run once; every point is a fork. Its first
argument is a file: `{"out": DIR, "modes": [...], "count": N or "all", "seed": ..., "signals": [[phase, names], ...]}`.
Prints the operations of an undisturbed run, then one JSON object per point.
"""

import ctypes
import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

MODES = ["count", "kill", "torn", "full", "broken"]
RECIPE = [
    "recipes/smoke.yaml",
    *("--set", "evaluation.samples=0"),
    *("--set", "evaluation.each_epoch=true"),
    *("--set", "checkpoint.every_steps=1"),
    *("--set", "adapter.dropout=0.1"),
    *("--set", "adapter.target_modules=[q_proj]"),
    *("--set", "output.name=run"),
    *("--set", "training.micro_batch_tokens=100"),
]
SECONDS = 120


def main():
    from phases import signals_in

    from lora_chat.cli import main as command

    task = json.loads(Path(sys.argv[1]).read_text())
    out = Path(task["out"]).resolve()
    injector = ctypes.CDLL(os.environ["LD_PRELOAD"])

    def sft(folder, *more):
        return command(["sft", *RECIPE, "--set", f"output.directory={folder}", *more])

    def forked(folder, mode, point, *more):
        """Exit code (minus the signal), what was said, and how many operations there were."""
        said, log = out / "said.txt", out / "operations.txt"
        log.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            with said.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            try:
                if mode == "signals":
                    signals_in(*point)
                else:
                    injector.faults_arm(str(folder).encode(), MODES.index(mode), point, str(log).encode())
                code = sft(folder, *more)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        deadline = time.monotonic() + SECONDS
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "hangs", said.read_text(), 0
            time.sleep(0.005)
        operations = log.read_text().splitlines() if log.exists() else []
        return os.waitstatus_to_exitcode(ended[1]), said.read_text(), operations

    draw_nothing()
    sft(out / "warm")  # imports, caches
    gc.collect()
    gc.freeze()  # the libraries collect garbage now and then; nothing of what was imported is
    whole = out / "whole"
    code, said, operations = forked(whole, "count", 0)
    assert code == 0, said
    expected = result_of(whole)
    print(json.dumps({"operations": operations}), flush=True)
    points = choose(task, len(operations))
    for number, (mode, point) in enumerate(points):
        began = time.monotonic()
        folder = out / f"{mode}-{number}"
        ended, said, done = forked(folder, mode, point)
        resumed, said_again, _ = forked(folder, "count", 0, "--resume") if ended else (0, "", 0)
        same = resumed == 0 and result_of(folder) == expected
        found = {
            "mode": mode,
            "point": point,
            "operation": None if mode == "signals" or len(done) < point else done[point - 1].split(" ", 1)[1],
            "ended": ended,
            "resumed": resumed,
            "same": same,
            "folder": str(folder),
            "seconds": round(time.monotonic() - began, 2),
        }
        if not same:
            found |= {"said": said, "said_again": said_again}
        elif ended != -9:
            found |= {"said": said}
        print(json.dumps(found), flush=True)
        shutil.rmtree(folder, ignore_errors=True)


def choose(task, count):
    """Pairs of a mode and the number of an operation, or of "signals" and a phase with its signals."""
    every, draw = range(1, count + 1), random.Random(task["seed"])
    points = [("signals", phase) for phase in task["signals"]]
    for mode in task["modes"]:
        numbers = every if task["count"] == "all" else draw.sample(every, int(task["count"]))
        points += [(mode, number) for number in numbers]
    return points


def draw_nothing():
    """Matplotlib would take half of so small a run."""
    from matplotlib.figure import Figure

    Figure.savefig = lambda self, file, **kwargs: file.write(b"a picture")


def result_of(folder):
    """The bytes of the adapter and the metrics without their times, of the newest run."""
    run = max(folder.glob("run-*/adapter/adapter_model.safetensors"), default=None)
    if run is None:
        return None
    rows = [json.loads(line) for line in (run.parents[1] / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
    left = sorted(
        p.name for p in run.parents[1].rglob("*") if p.name.endswith(".part") or p.name.startswith(".adapter")
    )
    return run.read_bytes(), rows, left


if __name__ == "__main__":
    main()
