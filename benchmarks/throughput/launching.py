"""Start runners in fresh processes and read their line of JSON."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers import Trainer

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Run:
    """The result of one process."""

    data: str
    trainer: str
    round: int
    result: dict[str, Any] | None
    """Result of the runner; None if it failed."""
    error: str = ""


def run_program(interpreter: str, program: str, *arguments: str) -> dict[str, Any]:
    """Run a program of this folder; return its JSON. Raises RuntimeError with the end of its error output."""
    done = subprocess.run(  # noqa: S603
        [interpreter, str(_HERE / program), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare(file: Path, work: Path, shared_prefix: int, base: str) -> None:
    """Write a work folder unless it exists."""
    if not (work / "facts.json").is_file():
        arguments = [str(file), "--work", str(work), "--shared-prefix", str(shared_prefix), "--base", base]
        run_program(sys.executable, "prepare_rows.py", *arguments)


def measure(trainer: Trainer, interpreter: str, work: Path, steps: int, number: int) -> Run:
    """Run a trainer once; a failure is part of the result."""
    arguments = ["--work", str(work), "--steps", str(steps), "--setting", json.dumps(trainer.setting)]
    print(f"{work.name}, round {number + 1}: {trainer.name} ...", file=sys.stderr, flush=True)
    try:
        return Run(work.name, trainer.name, number, run_program(interpreter, trainer.runner, *arguments))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return Run(work.name, trainer.name, number, None, str(error))


def measure_ceiling(work: Path) -> dict[str, Any]:
    """Measure bf16 products of the base's shapes."""
    return run_program(sys.executable, "ceiling.py", "--base", str(work / "base"))
