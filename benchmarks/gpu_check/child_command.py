"""Build the command lines of child processes that use the card, or the emulated card in a rehearsal."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FAKE_CARD_VARIABLE = "GPU_CHECK_FAKE_CARD"
"""Environment variable with the folder of the emulated card; without it the real card is used."""
_START_PROGRAM = Path(__file__).with_name("start_on_card.py")
ROOT = Path(__file__).resolve().parents[2]


def is_rehearsal() -> bool:
    """Return whether the check runs on the emulated card."""
    return FAKE_CARD_VARIABLE in os.environ


def card_command(arguments: list[str], interpreter: str = sys.executable, limits: Sequence[str] = ()) -> list[str]:
    """Return the command that runs a program, or `-m MODULE`, on a card.

    `limits` are options of start_on_card.py: `--memory BYTES` emulates a smaller card, `--free BYTES` a full one.
    """
    if not is_rehearsal() and not limits:
        return [interpreter, *arguments]
    return [interpreter, str(_START_PROGRAM), *limits, *arguments]


def write_base(folder: Path, base: str, changes: Mapping[str, Any], *, weights: bool) -> None:
    """Write the folder of a base, in a process of its own because that needs libraries."""
    program = str(Path(__file__).with_name("write_base.py"))
    options = ["--weights"] if weights else []
    command = [sys.executable, program, str(folder), base, json.dumps(dict(changes)), *options]
    subprocess.run(command, check=True)  # noqa: S603 - a program of this folder


def start_program(arguments: list[str], *, limits: Sequence[str] = ()) -> "subprocess.Popen[str]":
    """Start a program of this folder on the card, with pipes for its input and output; its errors go to the log."""
    program = Path(__file__).with_name(arguments[0])
    return subprocess.Popen(  # noqa: S603 - a program of this folder
        card_command([str(program), *arguments[1:]], limits=limits),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
