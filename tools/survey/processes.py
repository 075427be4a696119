"""Processes forked from one that has imported the large libraries."""

import json
import os
import runpy
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_chat.system.worker import WorkerResult

TIME_LIMIT = 240
"""Maximum seconds of one command."""
QUESTIONS = "Which day comes after Monday?\nAnd after that?\n"


@dataclass(frozen=True)
class Ended:
    """The exit code and the output of a process; exit code -1 if it was stopped at the time limit."""

    code: int
    stdout: str
    stderr: str

    @property
    def has_traceback(self) -> bool:
        """Return whether the process ended with a traceback, or by a signal or the time limit."""
        return "Traceback (most recent call last)" in self.stderr or self.code < 0 or self.code == 1

    @property
    def message(self) -> str:
        """Return the error that was printed, on one line; otherwise the last line of stderr."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        first = next((index for index, line in enumerate(lines) if line.startswith("Error: ")), len(lines) - 1)
        return " ".join(lines[first:]) if lines else ""

    @property
    def last_line(self) -> str:
        """Return the last line of stderr, which names the exception of a traceback."""
        return next((line.strip() for line in reversed(self.stderr.splitlines()) if line.strip()), "")


def run_forked(work: Callable[[], object], folder: Path, name: str, stdin: Path | None = None) -> Ended:
    """Run `work` in a fork; what it returns is the exit code if it is an integer, and is printed as JSON otherwise."""
    files = [folder / f"{name}.{stream}" for stream in ("out", "err")]
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            os.dup2(os.open(stdin or os.devnull, os.O_RDONLY), 0)
            for number, path in enumerate(files, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            value = work()
            if isinstance(value, int):
                code = value
            else:
                print(json.dumps(value))
                code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    end = time.monotonic() + TIME_LIMIT
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > end:
            os.killpg(child, 9)
            os.waitpid(child, 0)
            code = -1
            break
        time.sleep(0.02)
    return Ended(code, *(path.read_text("utf-8", "replace") for path in files))


def run_command(arguments: Sequence[object], folder: Path, name: str) -> Ended:
    """Run one command of lora_chat in a fork."""
    questions = folder / "questions.txt"
    questions.write_text(QUESTIONS, encoding="utf-8")

    def work() -> int:
        import lora_chat.export.parity.peft_runner as peft_runner
        from lora_chat.cli import main

        vars(peft_runner)["run_worker"] = run_forked_worker
        return main([str(argument) for argument in arguments])

    return run_forked(work, folder, name, questions)


def run_forked_worker(
    code: str | Path, arguments: Sequence[str] = (), *, stdin: str = "", **_: object
) -> "WorkerResult":
    """Replace `lora_chat.system.worker.run_worker` by a fork, which need not import the libraries again."""
    folder = Path(tempfile.mkdtemp())
    text = folder / "stdin"
    text.write_text(stdin, encoding="utf-8")

    def work() -> int:
        import torch

        torch.set_num_threads(1)  # threads of the process that was forked do not exist here
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv = [str(code), *arguments]
        # A worker must not use lora_chat and checks that. `reader` repeats its comparison without any of it.
        for name in [name for name in sys.modules if name.partition(".")[0] == "lora_chat"]:
            del sys.modules[name]
        if str(code).endswith(".py"):
            runpy.run_path(str(code), run_name="__main__")
        else:
            runpy.run_module(str(code), run_name="__main__", alter_sys=True)
        return 0

    ended = run_forked(work, folder, "worker", text)
    shutil.rmtree(folder)
    from lora_chat.system.worker import WorkerResult

    return WorkerResult(ended.code, ended.stdout, ended.stderr)
