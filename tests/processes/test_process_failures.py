"""Each way in which one process can fail ends all of them, soon, with one message and with nothing left.

The whole table is on demand (`LORA_CHAT_ALL_BASES=1`), because each case starts a launcher and two interpreters.
`LORA_CHAT_FAILURE_TABLE=FILE` appends a line for each case; benchmarks/CRASHES.md has the record.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SILENCE_SECONDS = 8
"""Longest time without a beat in these tests; 60 s for users."""
BOUND_SECONDS = 120
"""Longest time from start to end on a busy machine; 20 s of it are the wait for a process that is stopped."""


@dataclass(frozen=True)
class Case:
    kind: str
    rank: int
    stage: str
    code: int
    message: str
    """Regular expression of the only message."""


KILLED = r"Error: Process {n} of 2 was ended by SIGKILL, usually because the system ran out of memory .*--resume.*"
SILENT = r"Error: Process {n} of 2 has not answered for 8 s.*"
STALLED = r"Error: Process {n} of 2 has made no progress for 0.133 minutes.*"
KINDS = {
    "SIGKILL": (11, KILLED),
    "SIGSEGV": (11, r"Error: Process {n} of 2 was ended by SIGSEGV, a crash in native code.*"),
    "SIGABRT": (11, r"Error: Process {n} of 2 was ended by SIGABRT, a crash in native code.*"),
    "SIGSTOP": (11, SILENT),
    "loop": (11, STALLED),
    "native hang": (11, STALLED),
    "native hang with the lock of the interpreter": (11, SILENT),
    "exit": (7, r"Error: Process {n} of 2 ended with exit code 7 before its work was done.*"),
    "error": (3, r"Error: (Process 2 of 2: )?Line 3 is not JSON. Fix: correct it."),
    "bug": (1, r"(?s)(Process 2 of 2: )?Traceback .*ZeroDivisionError: division by zero"),
    "memory": (5, r"Error: (Process 2 of 2: )?Out of memory.*"),
    "disk": (4, r"Error: (Process 2 of 2: )?No space left to write: /data/checkpoint.*"),
    "SIGTERM": (143, r"Stopped (after step \d+|before the run began)?\.?"),
    "SIGINT": (130, r"Stopped (after step \d+|before the run began)?\.?"),
}
"""Exit code and message of each kind of failure."""


def _case(kind: str, rank: int, stage: str) -> Case:
    code, message = KINDS[kind]
    return Case(kind, rank, stage, code, message.replace("{n}", str(rank + 1)))


CASES = [
    *(_case(kind, rank, "step") for kind in KINDS for rank in (1, 0)),
    *(
        _case(kind, 1, stage)
        for stage in ("start", "joined", "connected", "end")
        for kind in ("SIGKILL", "error", "SIGSTOP", "SIGTERM")
        if (kind, stage) not in {("error", "start"), ("SIGSTOP", "start"), ("SIGTERM", "start")}
    ),
    *(_case(kind, 0, "writing") for kind in ("SIGKILL", "disk", "SIGSTOP")),
]
DEFAULT = [_case("SIGKILL", 1, "step")]
ON_DEMAND = os.environ.get("LORA_CHAT_ALL_BASES") == "1"


@pytest.fixture
def launch(tmp_path):
    """Return a function that starts processes with the launcher in a new session."""
    temporary, out = tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    out.mkdir()
    marker = f"LORA_CHAT_TEST={tmp_path}"
    started = []

    def start(*arguments, launcher=("launch_faulty.py",)):
        environment = {**os.environ, "TMPDIR": str(temporary), "OUT": str(out), "OMP_NUM_THREADS": "1"}
        environment |= {"LORA_CHAT_TEST": str(tmp_path), "PYTHONPATH": os.pathsep.join(map(str, [HERE.parents[1]]))}
        process = subprocess.Popen(
            [sys.executable, str(HERE / launcher[0]), *launcher[1:], *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
    for pid in find_processes(marker):
        os.kill(pid, signal.SIGKILL)


def find_processes(marker: str) -> list[int]:
    """Return the processes, except zombies, that have a variable in their environment."""
    pids = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and marker.encode() in (folder / "environ").read_bytes().split(b"\0"):
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def _list_shared_memory() -> set[str]:
    """Return the files of shared memory except semaphores, which multiprocessing unlinks when it creates them."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def _finish(process, tmp_path, seconds=BOUND_SECONDS):
    """Return exit code, stdout, stderr and the processes and files that are left."""
    stdout, stderr = process.communicate(timeout=seconds + 60)
    deadline = time.monotonic() + 3
    while (pids := find_processes(f"LORA_CHAT_TEST={tmp_path}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return process.returncode, stdout, stderr, pids, [path.name for path in (tmp_path / "tmp").iterdir()]


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "case", CASES if ON_DEMAND else DEFAULT, ids=lambda case: f"{case.kind}-{case.rank}-{case.stage}"
)
def test_a_failure_of_one_process_ends_all(launch, tmp_path, case):
    before, started = _list_shared_memory(), time.monotonic()
    process = launch(2, case.kind, case.rank, case.stage, SILENCE_SECONDS)
    code, stdout, stderr, pids, files = _finish(process, tmp_path)
    seconds = time.monotonic() - started
    _record(case, seconds, code, stderr)
    assert re.fullmatch(case.message, stderr.strip()), stderr
    assert code == case.code
    assert stdout == ""
    assert seconds < BOUND_SECONDS
    assert pids == [] and _list_shared_memory() - before == set()
    assert files == ([] if case.stage != "writing" else ["run.part"])


def _record(case: Case, seconds: float, code: int, stderr: str) -> None:
    """Append a line for the record."""
    if path := os.environ.get("LORA_CHAT_FAILURE_TABLE"):
        line = {"kind": case.kind, "rank": case.rank, "stage": case.stage, "seconds": round(seconds, 1), "code": code}
        with Path(path).open("a") as file:
            file.write(json.dumps({**line, "stderr": stderr}) + "\n")
