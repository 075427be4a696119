"""Throughput of training: lora_chat against TRL and LLaMA-Factory, the same rows, base, adapter and steps.

    python benchmarks/throughput --data FILE.jsonl ... [--prefixed FILE.jsonl ...] [--steps 12] [--rounds 2]
        [--trainers trl-sft trl-best ours] [--llama-factory PYTHON] [--json RESULT.json] [--work DIR]
    python benchmarks/throughput --data FILE.jsonl --grid

Every run is a fresh process, and the trainers alternate (A-B-A-B), because times on a busy machine drift. Rates are
supervised tokens in a second after --warmup steps, never padded ones. --grid finds TRL's
best flags; a trainer of --trainers may also be `trl:{"batch": 2, "accumulation": 4, "dtype": "bfloat16"}`.
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
    """The command line."""
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
    arguments.add_argument("--reference", default="trl-best", help="the trainer whose losses the others are held to")
    arguments.add_argument("--llama-factory", metavar="PYTHON", help="the interpreter that has it")
    arguments.add_argument("--grid", action="store_true", help="TRL's batch, checkpointing and packing")
    arguments.add_argument("--work", type=Path, help="keep the prepared rows here, and take those that are there")
    arguments.add_argument("--json", type=Path, help="write every run here")
    given = arguments.parse_args()
    for name, usual, in_grid in (("steps", 12, 3), ("warmup", 5, 1), ("rounds", 2, 1)):
        if getattr(given, name) is None:
            setattr(given, name, in_grid if given.grid else usual)
    if given.warmup >= given.steps:
        arguments.error("--warmup leaves no step to time")
    if not given.data + given.prefixed:
        arguments.error("name files with --data or --prefixed")
    return given


def choose_trainers(given: argparse.Namespace) -> list[Trainer]:
    """Those named, or the usual ones."""
    if given.grid:
        return grid()
    peers = ["llama-factory", "llama-factory-best"] if given.llama_factory else []
    trainers = find_trainers(given.trainers or ["trl-sft", "trl-best", *peers, "ours"])
    if not given.llama_factory and any(one.program == "llama_factory" for one in trainers):
        raise SystemExit("name LLaMA-Factory's interpreter with --llama-factory")
    return trainers


def compare(given: argparse.Namespace, trainers: list[Trainer], work: Path) -> dict[str, Any]:
    """Measure all trainers on one work folder, print the table; everything that was measured."""
    runs: list[Run] = []
    ceilings = []
    for number in range(given.rounds):
        ceilings.append(measure_ceiling(work))
        for trainer in trainers:
            interpreter = given.llama_factory if trainer.program == "llama_factory" else sys.executable
            runs.append(measure(trainer, interpreter, work, given.steps, number))
    facts = WorkFolder(work).read_facts()
    config = json.loads((work / "base" / "config.json").read_text(encoding="utf-8"))
    flops = flops_per_token(config, facts["average_context"], facts["supervised_share"], _RANK)
    found_ceilings = [one["model"]["best"] for one in ceilings]
    chosen = trainers[0].name if given.grid else given.reference
    reference = next((one.result["losses"] for one in runs if one.trainer == chosen and one.result), None)
    summaries: dict[str, Summary] = {}
    for trainer in trainers:
        mine = [run for run in runs if run.trainer == trainer.name]
        found = summarise(mine, given.warmup, reference if trainer.same_batches else None, flops, found_ceilings)
        if found:
            summaries[trainer.name] = found
    print(table(work.name, [one.name for one in trainers], summaries))
    print(
        f"  {facts['rows']} rows, {facts['mean_length']:.0f} tokens on average, {facts['supervised_share']:.0%} "
        f"supervised, sha256 {facts['rows_sha256'][:16]}; {flops / 1e6:.0f} MFLOP a token, "
        f"ceiling of each round {', '.join(f'{one:.0f}' for one in found_ceilings)} GFLOP/s; losses against {chosen}\n",
        flush=True,
    )
    return {
        "facts": facts,
        "ceilings": ceilings,
        "flops_per_token": flops,
        "runs": [asdict(run) for run in runs],
        "summaries": [asdict(one) for one in summaries.values()],
    }


def main() -> None:
    """Prepare, measure, print, write."""
    given = read_arguments()
    trainers = choose_trainers(given)
    machine = asdict(detect_hardware())
    print(f"{machine['name']}, {machine['threads']} threads, {machine['memory_bytes'] / 2**30:.0f} GiB")
    print(f"{given.steps} steps, the first {given.warmup} not timed, {given.rounds} rounds\n", flush=True)
    jobs = [(file, file.stem, 0) for file in given.data]
    jobs += [(file, f"{file.stem}-prefix-{given.shared_prefix}", given.shared_prefix) for file in given.prefixed]
    everything: dict[str, Any] = {"machine": machine, "setting": {"steps": given.steps, "warmup": given.warmup}}
    everything["trainers"] = [asdict(one) for one in trainers]
    everything["data"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file, name, prefix in jobs:
            work = (given.work or Path(folder)) / name
            prepare(file, work, prefix, given.base)
            everything["data"][name] = compare(given, trainers, work)
            if given.json:  # after every file, so that a long comparison can be stopped
                given.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    found = [run["result"]["versions"] for one in everything["data"].values() for run in one["runs"] if run["result"]]
    for versions in {json.dumps(one): one for one in found}.values():
        print(", ".join(f"{name} {version}" for name, version in versions.items()))


if __name__ == "__main__":
    main()
