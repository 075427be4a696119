"""Measure several processes of one core each beside one process of as many cores: python benchmarks/processes.py

    python benchmarks/processes.py [--recipe recipes/quickstart.yaml] [--processes 2] [--steps 40] [--rounds 3]

Both starts train the same steps of the recipe, in turns, on the same cores. Each ratio is from two runs of one round.
The first steps of a run are left out. Then the processes sum a vector of the size of the LoRA gradients and do nothing
else, which is the time of the all-reduce without waiting for the slower process. Other programs must not run meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WARMUP_STEPS = 5
"""Steps at the start of a run that are not timed."""
ALL_REDUCES = 100


@dataclass(frozen=True)
class Timing:
    """The steps of one run."""

    tokens_per_second: float
    """Supervised tokens per second after the first steps."""
    step_seconds: float
    """Median time of a step, in seconds."""
    losses: list[float]
    tokens: list[int]
    """Supervised tokens until the end of each step."""
    weights: int
    """Weights of the adapter."""


def main() -> None:
    """Print one table."""
    options = read_arguments()
    if options.all_reduce:
        time_all_reduce(options.all_reduce)
        return
    cores = sorted(os.sched_getaffinity(0))[: options.processes]
    if len(cores) < options.processes:
        raise SystemExit(f"{options.processes} processes need as many cores. Fix: --processes {len(cores)}.")
    os.sched_setaffinity(0, cores)  # child processes inherit it
    single: list[Timing] = []
    several: list[Timing] = []
    for number in range(options.rounds):
        # The order changes, because the first of two runs may meet a colder or a less busy machine.
        for processes in (1, options.processes) if number % 2 == 0 else (options.processes, 1):
            timing = train(options, processes)
            (single if processes == 1 else several).append(timing)
            print(f"round {number + 1}, {processes} processes: {timing.tokens_per_second:.1f} tokens/s", flush=True)
    print_table(options.processes, single, several, run_all_reduce(options.processes, several[0].weights))


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "recipes/quickstart.yaml"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--all-reduce", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processes < 2 or options.steps < WARMUP_STEPS + 2 or options.rounds < 1:
        parser.error(f"at least 2 processes, {WARMUP_STEPS + 2} steps and 1 round are needed")
    return options


def train(options: argparse.Namespace, processes: int) -> Timing:
    """Train some steps of the recipe and return their times. The comparison after training is as short as possible."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "training.max_steps": options.steps,
            "training.epochs": 1000,
            "evaluation.each_epoch": "false",
            "evaluation.samples": 0,
            "evaluation.general": "false",
            "evaluation.questions": "null",
            "checkpoint.every_minutes": 1000,
            "output.directory": folder,
        }
        words = [f"{name}={value}" for name, value in settings.items()] + options.set
        command = [sys.executable, "-m", "lora_chat", "sft", options.recipe, "--json"]
        command += [part for word in words for part in ("--set", word)]
        command += ["--processes", str(processes)] if processes > 1 else []
        threads = str(options.processes // processes)
        done = subprocess.run(  # noqa: S603 - the command line of this package
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
        result = json.loads(done.stdout)
        lines = (Path(result["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return read_timing([json.loads(line) for line in lines], result["trainable_parameters"])


def read_timing(records: list[dict[str, Any]], weights: int) -> Timing:
    """Return the times of the steps after the first ones, from the lines of `metrics.jsonl`."""
    steps = [record for record in records if "loss" in record and "step" in record]
    timed = steps[WARMUP_STEPS - 1 :]
    seconds = [after["seconds"] - before["seconds"] for before, after in pairwise(timed)]
    tokens = timed[-1]["supervised_tokens"] - timed[0]["supervised_tokens"]
    return Timing(
        tokens / sum(seconds),
        statistics.median(seconds),
        [step["loss"] for step in steps],
        [step["supervised_tokens"] for step in steps],
        weights,
    )


def run_all_reduce(processes: int, weights: int) -> float:
    """Return the median time in which the processes sum a vector of fp32 gradients, in seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [__file__, "--all-reduce", str(weights)]
    done = subprocess.run(  # noqa: S603 - this program
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def time_all_reduce(weights: int) -> None:
    """Sum a vector in this process and the others, and print the median time in the first one."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    vector, seconds = torch.zeros(weights), []
    for _ in range(ALL_REDUCES):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(vector)
        seconds.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print(statistics.median(seconds), flush=True)
    dist.destroy_process_group()


def print_table(processes: int, single: list[Timing], several: list[Timing], all_reduce: float) -> None:
    """Print rates, ratios, the share of the all-reduce, and whether the same data was trained."""
    for name, timings in (("1 process", single), (f"{processes} processes", several)):
        rates = [timing.tokens_per_second for timing in timings]
        step = statistics.median(timing.step_seconds for timing in timings)
        print(
            f"{name:12}  {statistics.median(rates):8.1f} supervised tokens/s ({min(rates):.1f} to {max(rates):.1f}), "
            f"{step * 1000:.0f} ms a step"
        )
    ratios = [many.tokens_per_second / one.tokens_per_second for one, many in zip(single, several, strict=True)]
    print(f"ratio         {statistics.median(ratios):8.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    step = statistics.median(timing.step_seconds for timing in several)
    weights = several[0].weights
    print(
        f"all-reduce    {all_reduce * 1000:8.2f} ms for {weights:,} gradients ({weights * 4 / 2**20:.1f} MiB), "
        f"{all_reduce / step:.2%} of a step"
    )
    same_data = all(timing.tokens == single[0].tokens for timing in (*single, *several))
    off = max(
        abs(one - many) / abs(one) for one, many in zip(single[0].losses, several[0].losses, strict=True) if one != 0
    )
    print(f"same tokens in every step: {'yes' if same_data else 'NO'}; largest difference of a step's loss: {off:.1e}")


if __name__ == "__main__":
    main()
