"""Measure training throughput of lora_chat, TRL and LLaMA-Factory with the same rows, base, adapter and steps.

    python benchmarks/throughput --data FILE.jsonl ... [--prefixed FILE.jsonl ...] [--steps 12] [--rounds 2]
        [--trainers trl-sft trl-best ours] [--llama-factory PYTHON] [--json RESULT.json] [--work DIR]
    python benchmarks/throughput --data FILE.jsonl --grid

Every run is a fresh process, and the trainers alternate (A-B-A-B), because times on a busy machine drift. Rates are
supervised tokens per second after --warmup steps, without padding. --grid finds TRL's best flags. Besides the names
above, a trainer of --trainers may be `trl:{"batch": 2, "accumulation": 4, "dtype": "bfloat16"}`.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ceiling import flops_per_token
from launching import Run, measure, measure_ceiling, prepare
from summary import Summary, summarise, table
from trainers import NAMED, Trainer, find_trainers, grid
from work_folder import WorkFolder

from lora_chat.system.hardware import detect_hardware

_RANK = 16


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    arguments = argparse.ArgumentParser(prog="benchmarks/throughput", description="throughput of training")
    arguments.add_argument("--data", type=Path, nargs="*", default=[], help="chat files")
    arguments.add_argument(
        "--prefixed", type=Path, nargs="*", default=[], help="chat files, under a long system prompt"
    )
    arguments.add_argument("--shared-prefix", type=int, default=240, help="tokens of that prompt")
    arguments.add_argument("--base", default="smollm2-135m-instruct")
    arguments.add_argument("--steps", type=int, help="12, or 3 with --grid")
    arguments.add_argument("--warmup", type=int, help="first steps that are not timed: 5, or 1 with --grid")
    arguments.add_argument("--rounds", type=int, help="2, or 1 with --grid")
    arguments.add_argument("--trainers", nargs="+", help=", ".join(NAMED))
    arguments.add_argument("--reference", default="trl-best", help="the trainer whose losses are the reference")
    arguments.add_argument("--llama-factory", metavar="PYTHON", help="the interpreter that has it")
    arguments.add_argument("--grid", action="store_true", help="TRL's batch, checkpointing and packing")
    arguments.add_argument("--work", type=Path, help="keep the prepared rows here and reuse them")
    arguments.add_argument("--json", type=Path, help="write every run here")
    options = arguments.parse_args()
    for name, usual, in_grid in (("steps", 12, 3), ("warmup", 5, 1), ("rounds", 2, 1)):
        if getattr(options, name) is None:
            setattr(options, name, in_grid if options.grid else usual)
    if options.warmup >= options.steps:
        arguments.error("--warmup leaves no step to time")
    if not options.data + options.prefixed:
        arguments.error("name files with --data or --prefixed")
    return options


def choose_trainers(options: argparse.Namespace) -> list[Trainer]:
    """Return the trainers of the command line, or the default ones."""
    if options.grid:
        return grid()
    peers = ["llama-factory", "llama-factory-best"] if options.llama_factory else []
    trainers = find_trainers(options.trainers or ["trl-sft", "trl-best", *peers, "ours"])
    if not options.llama_factory and any(trainer.program == "llama_factory" for trainer in trainers):
        raise SystemExit("name LLaMA-Factory's interpreter with --llama-factory")
    return trainers


def compare(options: argparse.Namespace, trainers: list[Trainer], work: Path) -> dict[str, Any]:
    """Measure all trainers on one work folder, print the table, and return every measurement."""
    runs: list[Run] = []
    ceilings = []
    for number in range(options.rounds):
        ceilings.append(measure_ceiling(work))
        for trainer in trainers:
            interpreter = options.llama_factory if trainer.program == "llama_factory" else sys.executable
            runs.append(measure(trainer, interpreter, work, options.steps, number))
    facts = WorkFolder(work).read_facts()
    config = json.loads((work / "base" / "config.json").read_text(encoding="utf-8"))
    flops = flops_per_token(config, facts["average_context"], facts["supervised_share"], _RANK)
    best_rates = [ceiling["model"]["best"] for ceiling in ceilings]
    chosen = trainers[0].name if options.grid else options.reference
    reference = next((run.result["losses"] for run in runs if run.trainer == chosen and run.result), None)
    summaries: dict[str, Summary] = {}
    for trainer in trainers:
        trainer_runs = [run for run in runs if run.trainer == trainer.name]
        summary = summarise(
            trainer_runs, options.warmup, reference if trainer.same_batches else None, flops, best_rates
        )
        if summary:
            summaries[trainer.name] = summary
    print(table(work.name, [trainer.name for trainer in trainers], summaries))
    print(
        f"  {facts['rows']} rows, {facts['mean_length']:.0f} tokens on average, {facts['supervised_share']:.0%} "
        f"supervised, sha256 {facts['rows_sha256'][:16]}; {flops / 1e6:.0f} MFLOP a token, "
        f"ceiling of each round {', '.join(f'{rate:.0f}' for rate in best_rates)} GFLOP/s; losses against {chosen}\n",
        flush=True,
    )
    return {
        "facts": facts,
        "ceilings": ceilings,
        "flops_per_token": flops,
        "runs": [asdict(run) for run in runs],
        "summaries": [asdict(summary) for summary in summaries.values()],
    }


def main() -> None:
    """Prepare the rows, measure, print and write the results."""
    options = read_arguments()
    trainers = choose_trainers(options)
    machine = asdict(detect_hardware())
    print(f"{machine['name']}, {machine['threads']} threads, {machine['memory_bytes'] / 2**30:.0f} GiB")
    print(f"{options.steps} steps, the first {options.warmup} not timed, {options.rounds} rounds\n", flush=True)
    jobs = [(file, file.stem, 0) for file in options.data]
    jobs += [(file, f"{file.stem}-prefix-{options.shared_prefix}", options.shared_prefix) for file in options.prefixed]
    everything: dict[str, Any] = {"machine": machine, "setting": {"steps": options.steps, "warmup": options.warmup}}
    everything["trainers"] = [asdict(trainer) for trainer in trainers]
    everything["data"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file, name, prefix in jobs:
            work = (options.work or Path(folder)) / name
            prepare(file, work, prefix, options.base)
            everything["data"][name] = compare(options, trainers, work)
            if options.json:  # after every file, so that a long comparison can be stopped
                options.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    versions_of_runs = [
        run["result"]["versions"] for data in everything["data"].values() for run in data["runs"] if run["result"]
    ]
    for versions in {json.dumps(versions): versions for versions in versions_of_runs}.values():
        print(", ".join(f"{name} {version}" for name, version in versions.items()))


if __name__ == "__main__":
    main()
