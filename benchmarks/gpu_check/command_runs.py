"""Run lora_chat's command line on the card, and describe the runs that the parts share."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child_command import ROOT, card_command

RUN_LINK = "run.json"
"""File of the work folder with the path of the run that `merge` and `chat` use."""


@dataclass(frozen=True)
class CommandResult:
    """The end of one command."""

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """Return the last line of stderr, which explains an error."""
        lines = self.stderr.strip().splitlines()
        return lines[-1][:300] if lines else ""

    def read_json(self) -> dict[str, Any]:
        """Return the JSON that the command printed, or nothing if it printed none."""
        try:
            value = json.loads(self.stdout)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def run_command(arguments: list[str], seconds: float, *, stdin: str = "", limits: Sequence[str] = ()) -> CommandResult:
    """Run `lora-chat ARGUMENTS` to its end; code -1 means that it took too long."""
    return wait_for_end(start_command(arguments, limits=limits), seconds, stdin)


def start_command(arguments: list[str], *, limits: Sequence[str] = ()) -> "subprocess.Popen[str]":
    """Start `lora-chat ARGUMENTS` on the card."""
    return subprocess.Popen(  # noqa: S603 - the command line of this package
        card_command(["-m", "lora_chat", *arguments], limits=limits),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def wait_for_end(process: "subprocess.Popen[str]", seconds: float, stdin: str = "") -> CommandResult:
    """Wait for a command; one that takes too long is killed."""
    try:
        stdout, stderr = process.communicate(stdin, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return CommandResult(-1, "", f"no end within {seconds:.0f} s")
    return CommandResult(process.returncode, stdout, stderr)


def interrupt_after(process: "subprocess.Popen[str]", metrics: Path, step: int, seconds: float) -> CommandResult:
    """Send SIGTERM when the file of metrics has the line of a step, and wait for the end of the command."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= step:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.02)
    return wait_for_end(process, deadline - time.monotonic())


def digest_adapter(run: Path) -> str:
    """Return the SHA-256 of the weights of a run's adapter."""
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def write_dialogues(path: Path, count: int, repeats: int = 1) -> None:
    """Write invented dialogues of several lengths, a third of them with a second question.

    `repeats` makes long replies longer.
    """
    things = ("bowl", "jug", "plate", "vase", "cup", "tile", "lamp", "tray")
    colours = ("blue", "green", "white", "brown", "grey")
    with path.open("w", encoding="utf-8") as lines:
        for number in range(count):
            thing, colour = things[number % len(things)], colours[number % len(colours)]
            price = 10 + number % 37
            messages = [
                {"role": "user", "content": f"What does the {colour} {thing} number {number} cost?"},
                {
                    "role": "assistant",
                    "content": f"It costs {price} euros. " + "It is made by hand. " * (number % 4 * repeats),
                },
            ]
            if number % 3 == 0:
                messages += [
                    {"role": "user", "content": "Is it in stock?"},
                    {"role": "assistant", "content": f"Yes, {1 + number % 5} of them."},
                ]
            lines.write(json.dumps({"messages": messages}) + "\n")


def read_run(work: Path) -> Path | None:
    """Return the run that part `run` has made, or None if it has failed."""
    try:
        return Path(json.loads((work / RUN_LINK).read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError):
        return None


def file_bytes(folder: Path) -> int:
    """Return the size of the weight files of a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
