"""List the parts of the GPU check with their programs, order and time limits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of the check. Each is a process, because a CUDA error ends the use of the card in its process."""

    name: str
    title: str
    program: str
    """Name of the program in this folder."""
    stage: int
    """Parts of one stage run at the same time; a stage starts when the one before has ended."""
    seconds: int
    """Time limit at full size, in seconds."""


PARTS = (
    Part("environment", "device rules and environment", "part_environment.py", 1, 75),
    Part("parity", "fast path = stock path: loss and every gradient", "part_parity.py", 1, 130),
    Part("run", "sft, interrupted and resumed, by the command line", "part_run.py", 1, 130),
    Part("merge", "merge and parity check, also with too little memory", "part_merge.py", 2, 75),
    Part("chat", "chat and eval by the command line", "part_chat.py", 2, 60),
    Part("throughput", "tokens/s and peak memory beside TRL", "part_throughput.py", 3, 170),
    Part("plan", "estimate against measured memory and time", "part_plan.py", 4, 110),
    Part("processes", "one process and one for each card: data, loss, speed", "part_processes.py", 5, 150),
)
"""All parts in the order of the table. The last three have the card for themselves, because they are timed."""
TOTAL_SECONDS = 480
"""Time limit of the whole check, in seconds; a part gets at most the time that is left."""


def select_parts(names: list[str] | None) -> list[Part]:
    """Return the parts with these names, or all. Raises SystemExit for an unknown name."""
    known = [part.name for part in PARTS]
    if unknown := [name for name in names or [] if name not in known]:
        raise SystemExit(f"Unknown part: {', '.join(unknown)}. Fix: choose from {', '.join(known)}.")
    return [part for part in PARTS if names is None or part.name in names]
