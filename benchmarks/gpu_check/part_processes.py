"""Part `processes`: training in one process and in several, each with its own card, by the command line.

The steps of all runs have the same data. A rehearsal trains in two processes on the CPU, to show that it works.
"""

import json
from pathlib import Path
from typing import Any

from check_records import Records, seconds_left
from check_sizes import CheckSize
from child_command import is_rehearsal, write_base
from command_runs import run_command, write_dialogues
from part_arguments import read_part_arguments

_WARMUP_STEPS = 3
_LOSS_BOUND = 0.01
"""Largest relative difference of a step's loss, as in the part `parity`."""
_RESERVE_SECONDS = 5.0


def main() -> None:
    """Train with one process, with more of them up to the number of cards, and with a sharded base on all cards."""
    size, work = read_part_arguments()
    records = Records()
    cards = 2 if is_rehearsal() else count_cards()
    if cards < 2:
        records.skip("scaling", "one card is visible, and each process needs its own")
        return
    write_dialogues(work / "scaling.jsonl", size.run_dialogues, repeats=4 if is_rehearsal() else 16)
    write_base(work / "scaling-base", "", size.run_config, weights=True)
    runs: dict[int, dict[str, Any]] = {}
    for count, sharded in [*((count, False) for count in list_counts(cards)), (cards, True)]:
        name = f"{count} processes, sharded base" if sharded else f"{count} processes"
        if seconds_left() < _RESERVE_SECONDS:
            records.skip(name, "the time of the part is over")
            continue
        arguments = make_arguments(size, work, count, sharded=sharded)
        result = run_command(arguments, seconds_left() - _RESERVE_SECONDS)
        if records.check(f"sft, {name}", result.code == 0, f"exit code {result.code}: {result.last_line}"):
            run = read_run(result.read_json())
            compare(records, name, count, run, run if count == 1 else runs.get(1))
            if not sharded:
                runs[count] = run


def count_cards() -> int:
    """Return the number of visible cards."""
    import torch

    return torch.cuda.device_count()


def list_counts(cards: int) -> list[int]:
    """Return 1, 2, 4 and so on, and the number of cards."""
    powers = [2**exponent for exponent in range(cards.bit_length()) if 2**exponent <= cards]
    return sorted({*powers, cards})


def make_arguments(size: CheckSize, work: Path, count: int, *, sharded: bool = False) -> list[str]:
    """Return the arguments of a training with `count` processes."""
    name = f"scaling-{count}-sharded" if sharded else f"scaling-{count}"
    recipe = work / f"{name}.yaml"
    recipe.write_text("data:\n  train: scaling.jsonl\n  validation_share: 0.1\n", encoding="utf-8")
    settings = {
        "base.name": str(work / "scaling-base"),
        "base.shard": str(sharded).lower(),
        "base.device": "cpu" if is_rehearsal() else "cuda",
        "quantization.mode": "none" if is_rehearsal() else "4bit",
        "data.max_length": "2048",
        "training.max_steps": str(max(size.run_steps, _WARMUP_STEPS + 3)),
        "training.epochs": "100",
        "training.effective_batch_size": "8" if is_rehearsal() else "32",
        "training.learning_rate": "1e-4",
        "evaluation.samples": "0",
        "evaluation.general": "false",
        "evaluation.each_epoch": "false",
        "output.directory": str(work / "runs"),
        "output.name": name,
    }
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return ["sft", str(recipe), "--json", *options, *(["--processes", str(count)] if count > 1 else [])]


def read_run(result: dict[str, Any]) -> dict[str, Any]:
    """Return losses, supervised tokens and speed of a run."""
    lines = (Path(result["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [step for step in map(json.loads, lines) if "loss" in step]
    first, last = steps[_WARMUP_STEPS - 1], steps[-1]
    tokens = last["supervised_tokens"] - first["supervised_tokens"]
    return {
        "losses": [step["loss"] for step in steps],
        "tokens": [step["supervised_tokens"] for step in steps],
        "tokens_per_second": tokens / max(1e-9, last["seconds"] - first["seconds"]),
        "peak_gib": result["peak_memory_bytes"] / 2**30,
    }


def compare(records: Records, name: str, count: int, run: dict[str, Any], single: dict[str, Any] | None) -> None:
    """Record the speed of a run, and check its data and losses against those of one process."""
    speed_up = run["tokens_per_second"] / single["tokens_per_second"] if single else None
    records.add_figures(
        name,
        supervised_tokens_per_second=run["tokens_per_second"],
        speed_up=speed_up,
        share_of_linear=speed_up / count if speed_up else None,
        peak_gib=run["peak_gib"],
    )
    if single is None or count == 1:
        return
    records.check(f"same tokens in every step, {name}", run["tokens"] == single["tokens"])
    off = max(abs(a - b) / abs(b) for a, b in zip(run["losses"], single["losses"], strict=True))
    records.check(f"loss, {name}", off <= _LOSS_BOUND, f"a step's loss differs by {off:.2%}")


if __name__ == "__main__":
    main()
