"""Part `throughput`: tokens per second and peak memory of lora_chat and TRL, which take turns on the card."""

import importlib.util
import statistics
from pathlib import Path
from typing import Any

from check_records import Records, seconds_left
from check_sizes import CheckSize
from child_command import is_rehearsal, write_base
from part_arguments import read_part_arguments
from turn_processes import TurnProcess

_OURS = "lora_chat"
_TRAINERS = (_OURS, "trl", "trl bf16", "trl padding-free")
_FALLBACK_TEXTS = ("fast path", "are padded", "are off", "not fused")
"""Parts of the messages of a fast path that is not complete."""
_MIB = 2**20
_RESERVE_SECONDS = 8.0
"""Time that is left at the end of the part, in seconds."""


def main() -> None:
    """Measure every shape."""
    size, work = read_part_arguments()
    records = Records()
    trainers = list(_TRAINERS)
    if importlib.util.find_spec("flash_attn"):
        trainers.append("trl flash")
    else:
        records.skip("TRL with flash attention", "the package flash-attn is not installed")
    records.skip("Unsloth", find_unsloth())
    for number, name in enumerate(size.speed_shapes):
        shapes_left = len(size.speed_shapes) - number
        measure_shape(records, size, name, work, trainers, (seconds_left() - _RESERVE_SECONDS) / shapes_left)


def find_unsloth() -> str:
    """Return the reason why Unsloth is not measured."""
    if importlib.util.find_spec("unsloth") is None:
        return "it is not installed"
    return "it is installed, but it loads only bases with weights, which this check does not have"


def measure_shape(
    records: Records, size: CheckSize, shape: str, work: Path, trainers: list[str], seconds: float
) -> None:
    """Let all trainers prepare at the same time and then train in turns, as long as the time lasts."""
    folder = work / f"speed-{shape}"
    deadline = seconds_left() - seconds
    speed_shape = size.speed_shapes[shape]
    write_base(folder, speed_shape.base, speed_shape.changes, weights=False)
    arguments = {name: ["train_blocks.py", name, shape, size.name, str(folder)] for name in trainers}
    processes = [TurnProcess(name, words) for name, words in arguments.items()]
    blocks = take_turns(records, processes, shape, size.rounds, deadline)
    errors = {process.name: process.error for process in processes}
    for name in [name for name, error in errors.items() if "OutOfMemory" in error]:
        # Together they need several times the memory of one, so a trainer that did not fit gets the card for itself.
        alone = TurnProcess(name, arguments[name])
        blocks |= take_turns(records, [alone], shape, size.rounds, deadline)
        errors[name] = alone.error
    record(records, size, shape, blocks, errors)


def take_turns(
    records: Records, processes: list[TurnProcess], shape: str, rounds: int, deadline: float
) -> dict[str, list[dict[str, Any]]]:
    """Return the blocks of each process. The first turn begins when all processes are ready."""
    for process in processes:
        message = process.receive(seconds_left() - deadline)
        if message is not None and process.name == _OURS:
            notes = [note for note in message["notes"] if any(text in note for text in _FALLBACK_TEXTS)]
            records.check(f"{shape}, no fallback", not notes, " ".join(notes))
    ready = {process.name: process.receive(seconds_left() - deadline) for process in processes if not process.error}
    blocks: dict[str, list[dict[str, Any]]] = {process.name: [] for process in processes}
    for number in range(rounds):
        for process in processes:
            if process.error or seconds_left() < deadline or (number == 0 and not ready.get(process.name)):
                continue
            if number and process.receive(seconds_left() - deadline) is None:
                continue
            process.go()
            block = process.receive(seconds_left() - deadline + _RESERVE_SECONDS)
            if block is not None:
                blocks[process.name].append(block)
    for process in processes:
        process.stop()
    return blocks


def record(
    records: Records, size: CheckSize, shape: str, blocks: dict[str, list[dict[str, Any]]], errors: dict[str, str]
) -> None:
    """Record rates, memory and the ratios to lora_chat of blocks in the same round."""
    for name, measured in blocks.items():
        error = errors[name] or "no block in the time of the part"
        if measured or name == _OURS or is_rehearsal():
            records.check(f"{shape}, {name}", bool(measured), error)
        else:
            records.skip(f"{shape}, {name}", error)  # another trainer that fails is no fault of lora_chat
        if not measured:
            continue
        rates = [block["steps"] * size.tokens / block["seconds"] for block in measured]
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(measured, blocks[_OURS], strict=False)]
        records.add_figures(
            f"{shape}, {name}",
            tokens_per_second=statistics.median(rates),
            range=[min(rates), max(rates)],
            ours_is_x=statistics.median(ratios) if ratios else None,
            ours_is_x_range=[min(ratios), max(ratios)] if ratios else None,
            peak_allocated_mib=round(measured[-1]["allocated"] / _MIB),
            peak_reserved_mib=round(measured[-1]["reserved"] / _MIB),
            blocks=len(measured),
        )


if __name__ == "__main__":
    main()
