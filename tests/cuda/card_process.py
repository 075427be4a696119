"""Processes with emulated CUDA cards for tests. A test gets them by the fixture `card`.

    def test_it(card):
        answer = card.run(measure, 3, capability=(7, 5))           # a function at the top level of the test file
        assert answer == {"device": "cuda:0"}

    def measure(number):                                            # runs in its own process with its own card
        import torch
        return {"device": str(torch.ones(number, device="cuda").device)}

    def test_command(card, tmp_path):
        done = card.command(["sft", str(recipe), "--set", "output.dir=..."], cwd=tmp_path, memory=4 * 2**30)
        assert done.exit_code == 0 and "cuda" in done.stderr

- `card.run(function, *arguments, **options)` returns the function's result; arguments and result travel as JSON. A
  function that fails raises CardProcessError with its traceback. Output is in `card.last` (a Done).
- `card.command(words, prepare=function, arguments=(), **options)` runs `lora_chat.cli.main(words)` and returns a Done
  with `exit_code`, `stdout`, `stderr`, `waits`, `operations`, `peaks` (bytes for each card) and `result`. `prepare` is
  called before the command, with `arguments`; if it returns a function, that is called after the command, and its value
  is `result`. Thus `prepare` can replace parts of libraries and record what happens.
- Options of both: `capability=(8, 6)`, `memory=12 * 2**30`, `used_by_others=2**28`, `cards=1`, `name="Emulated card"`
  (each of a card may be a list with one value for each card), `driver="580.95.05"`, `driver_cuda=(13, 0)` (an older one
  makes CUDA unavailable, with PyTorch's warning), `nvml={}` for an emulated `pynvml` that describes the cards, or with
  the arguments of `fake_nvml.install`; `environment={...}`, `cwd=...`, `stdin="..."`, `timeout=120` (seconds).

In the process, `import fake_card` gives OPERATIONS, WAITS, `reset_counters`, `peak_bytes`, `set_free_bytes`. Cases are
forks of one process for each session of pytest, so a case takes no time for imports; it must not rely on state that
another case has left. Workers that lora_chat starts are forks too and have the same cards.
"""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import build_card

from lora_chat.cli import ENVIRONMENT

ROOT = Path(__file__).parents[2]
DEFAULT_TIMEOUT = 120
"""Time limit of a case, in seconds."""


class CardProcessError(Exception):
    """A function failed in its process; the message is its traceback."""


@dataclass
class Done:
    """The end of a process."""

    exit_code: int
    stdout: str
    stderr: str
    result: object = None
    waits: dict[str, int] = field(default_factory=dict)
    """Number of waits of the host by kind and callers; see fake_card.py."""
    operations: dict[str, int] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=list)
    """Largest number of bytes on each visible card."""


class CardProcesses:
    """A source of processes with emulated cards."""

    def __init__(self, folder: Path) -> None:
        build_card.build_library()
        self.last: Done | None = None
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("card_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "server-errors").open("w"),
            text=True,
            # Threads of OpenMP do not survive a fork.
            env={
                **os.environ,
                **ENVIRONMENT,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
            },
            cwd=ROOT,
        )
        if self._server.stdout.readline() != "ready\n":
            raise CardProcessError((folder / "server-errors").read_text())

    def run(self, function, *arguments, **options):
        """Run a function in its own process and return its result."""
        self.last = done = self._run(function, arguments, None, **options)
        if done.exit_code:
            raise CardProcessError(f"exit code {done.exit_code}\n{done.stderr}\n{done.stdout}")
        return done.result

    def command(self, words, *, prepare=None, arguments=(), **options):
        """Run a command line in its own process."""
        self.last = done = self._run(prepare, arguments, [str(word) for word in words], **options)
        return done

    def close(self):
        """End the process that is forked."""
        self._server.communicate()

    def _run(
        self,
        function,
        arguments,
        command,
        *,
        environment=None,
        cwd=None,
        stdin="",
        timeout=DEFAULT_TIMEOUT,
        nvml=None,
        **card,
    ):
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        (folder / "stdin").write_text(stdin, encoding="utf-8")
        location = [inspect.getsourcefile(function), function.__name__] if function else None
        variables = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME") if name in os.environ}
        task = {
            "folder": str(folder),
            "function": location,
            "arguments": arguments,
            "command": command,
            "card": card,
            "nvml": nvml,
            "environment": {**variables, **(environment or {})},
            "timeout": timeout,
            "cwd": str(cwd) if cwd else None,
        }
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        exit_code = int(self._server.stdout.readline())
        stdout, stderr = ((folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr"))
        report = folder / "result.json"
        return Done(exit_code, stdout, stderr, **(json.loads(report.read_text()) if report.exists() else {}))
