"""Programs of Slurm that run every node of a job on this machine."""

import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

# As in Slurm, a SIGTERM to srun kills its tasks, and the exit code is the highest of the tasks.
_SRUN = """#!/bin/bash
trap 'kill -KILL $(cat "$FAKE/tasks"); exit 137' TERM
while [[ $1 == --* ]]; do echo "$1" >> "$FAKE/srun"; shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node "$@" > "$FAKE/node-$node.log" 2>&1 &
    echo $! >> "$FAKE/tasks"
done
code=0
for task in $(cat "$FAKE/tasks"); do
    wait "$task"
    ended=$?
    ((ended > code)) && code=$ended
done
exit "$code"
"""
_SCONTROL = """#!/bin/bash
echo "$*" >> "$FAKE/scontrol"
[[ $1 == show ]] && printf 'localhost\\nlocalhost\\n'
exit 0
"""
_SCANCEL = """#!/bin/bash
echo "$*" >> "$FAKE/scancel"
kill -TERM $(cat "$FAKE/tasks")
"""


class FakeSlurm:
    """A job of `launch/slurm.sh` on nodes that are all this machine; its files are in `folder`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL), ("scancel", _SCANCEL)):
            self.add_program(name, text)
        self.environment = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "FAKE": str(folder),
            **{"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"},
            **environment,
        }

    def add_program(self, name: str, text: str) -> str:
        """Write an executable and return its path."""
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def start(self, recipe: str) -> subprocess.Popen:
        """Start the job in a process group, as Slurm starts a batch script."""
        command = ["bash", str(ROOT / "launch/slurm.sh"), recipe]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for(self, text: str, seconds: float = 10) -> None:
        """Wait until every node has written a text."""
        deadline = time.monotonic() + seconds
        while not all(text in self.read(f"node-{node}.log") for node in range(2)):
            if time.monotonic() > deadline:
                raise AssertionError(f"no {text!r} in:\n{self.read('node-0.log')}\n{self.read('node-1.log')}")
            time.sleep(0.02)

    def read(self, name: str) -> str:
        """Return a file of the job; empty if it does not exist."""
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def kill(self, job: subprocess.Popen) -> None:
        """Kill the job and its tasks if they still run."""
        for number in (*map(int, self.read("tasks").split()), job.pid):
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
