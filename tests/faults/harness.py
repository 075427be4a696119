"""Program that runs a fine-tuning many times with one fault each time, and resumes it.

It is started with the injector in LD_PRELOAD. It imports everything and runs once, then forks for each point. Its
first argument is a file:
`{"out": DIR, "modes": [...], "count": N or "all", "seed": ..., "signals": [[phase, signal_names], ...]}`.
It prints the operations of a run without faults, then one JSON object per point.
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
    *("--set", "evaluation.replies=0"),
    *("--set", "evaluation.every_steps=1"),
    *("--set", "training.learning_rate=0.3"),  # so that the last step is not the best
    *("--set", "checkpoint.every_steps=1"),
    *("--set", "adapter.dropout=0.1"),
    *("--set", "adapter.target_modules=[q_proj]"),
    *("--set", "output.name=run"),
    *("--set", "training.micro_batch_tokens=100"),
]
SECONDS = 120


def main():
    from phases import send_signals_in

    from lora_chat.cli import main as lora_chat_main

    task = json.loads(Path(sys.argv[1]).read_text())
    out = Path(task["out"]).resolve()
    injector = ctypes.CDLL(os.environ["LD_PRELOAD"])

    held_out = write_held_out(out / "held-out.jsonl")

    def sft(folder, *options):
        settings = ("--set", f"output.directory={folder}", "--set", f"data.validation={held_out}")
        return lora_chat_main(["sft", *RECIPE, *settings, *options])

    def run_forked(folder, mode, point, *options):
        """Run in a fork. Return the exit code (negative for a signal), the output and the operations."""
        output_path, log = out / "output.txt", out / "operations.txt"
        log.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            with output_path.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            try:
                if mode == "signals":
                    send_signals_in(*point)
                else:
                    injector.faults_arm(str(folder).encode(), MODES.index(mode), point, str(log).encode())
                code = sft(folder, *options)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        deadline = time.monotonic() + SECONDS
        while not (status := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "hangs", output_path.read_text(), 0
            time.sleep(0.005)
        operations = log.read_text().splitlines() if log.exists() else []
        return os.waitstatus_to_exitcode(status[1]), output_path.read_text(), operations

    replace_plots()
    sft(out / "warm")  # imports, caches
    gc.collect()
    gc.freeze()  # so that garbage collections in the forks skip the imported libraries
    gc.unfreeze, gc.get_freeze_count = lambda: None, lambda: 0
    complete = out / "complete"
    code, output, operations = run_forked(complete, "count", 0)
    assert code == 0, output
    expected = read_result(complete)
    print(json.dumps({"operations": operations}), flush=True)
    points = choose_points(task, len(operations))
    for number, (mode, point) in enumerate(points):
        started = time.monotonic()
        folder = out / f"{mode}-{number}"
        exit_code, output, operations_done = run_forked(folder, mode, point)
        resumed, resumed_output, _ = run_forked(folder, "count", 0, "--resume") if exit_code else (0, "", 0)
        same = resumed == 0 and read_result(folder) == expected
        result = {
            "mode": mode,
            "point": point,
            "operation": None
            if mode == "signals" or len(operations_done) < point
            else operations_done[point - 1].split(" ", 1)[1],
            "exit_code": exit_code,
            "resumed": resumed,
            "same": same,
            "folder": str(folder),
            "seconds": round(time.monotonic() - started, 2),
        }
        if not same:
            result |= {"output": output, "resumed_output": resumed_output}
        elif exit_code != -9:
            result |= {"output": output}
        print(json.dumps(result), flush=True)
        shutil.rmtree(folder, ignore_errors=True)


def write_held_out(path):
    """Write dialogues, as many as are needed to choose the step that is kept, and return the path."""
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    chats = [[{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": n}] for n in numbers]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


def choose_points(task, count):
    """Return pairs of a mode and the number of an operation, or of "signals" and a phase with its signals."""
    all_numbers, generator = range(1, count + 1), random.Random(task["seed"])
    points = [("signals", phase) for phase in task["signals"]]
    for mode in task["modes"]:
        numbers = all_numbers if task["count"] == "all" else generator.sample(all_numbers, int(task["count"]))
        points += [(mode, number) for number in numbers]
    return points


def replace_plots():
    """Replace plots by constant bytes, because Matplotlib would take half the time of such a small run."""
    from matplotlib.figure import Figure

    Figure.savefig = lambda self, file, **kwargs: file.write(b"a picture")


def read_result(folder):
    """Return the adapter's bytes, the metrics without times, and leftover temporary files of the newest run."""
    run = max(folder.glob("run-*/adapter/adapter_model.safetensors"), default=None)
    if run is None:
        return None
    rows = [json.loads(line) for line in (run.parents[1] / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
    temporary_files = sorted(
        p.name for p in run.parents[1].rglob("*") if p.name.endswith(".part") or p.name.startswith(".adapter")
    )
    steps = sorted((path.name, path.read_bytes()) for path in run.parents[1].glob("candidates/*"))
    kept_step = json.loads((run.parents[1] / "result.json").read_text())["kept_step"]
    return run.read_bytes(), rows, temporary_files, steps, kept_step


if __name__ == "__main__":
    main()
