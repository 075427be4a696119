"""Each way in which one process can fail ends all of them, soon, with one message and with nothing left.

The whole table is on demand (`LORA_CHAT_ALL_BASES=1`), because each case starts a launcher and two interpreters.
`LORA_CHAT_FAILURE_TABLE=FILE` appends a line for each case; benchmarks/CRASHES.md has the record.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import faulty
import pytest

from tests.fork_server import make_process

pytestmark = pytest.mark.slow  # imports libraries in a server of processes

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
    "memory": (5, r"(?s)Error: (Process 2 of 2: )?Out of memory.*"),
    "disk": (4, r"Error: (Process 2 of 2: )?No space left to write: /data/checkpoint.*"),
    "SIGTERM": (143, r"Stopped( after step \d+| before the run began)?\."),
    "SIGINT": (130, r"Stopped( after step \d+| before the run began)?\."),
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
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


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


def _join(kind: str, failing: int, rank: int, port: int, folder: Path) -> None:
    """Work as one of two processes without torchrun, so that the first one has the store."""
    sys.stderr = (folder / f"stderr-{rank}").open("w")  # without the warnings of PyTorch's native code
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "TMPDIR": str(folder), "OUT": str(folder)})
    os._exit(faulty.main(kind, failing, "step", SILENCE_SECONDS))


LOST = r"Error: Process {n} of 2 ended without a message: it crashed, or it was killed.*--resume.*"


@pytest.mark.parametrize(
    ("kind", "failing", "code", "message"),
    [
        pytest.param("none", 0, 0, "", marks=ON_DEMAND),
        ("SIGKILL", 1, 11, LOST.replace("{n}", "2")),
        ("SIGKILL", 0, 11, r"Error: Process \d of 2 (ended without a message|lost its connection to the first).*"),
        ("error", 1, 3, r"Error: Process 2 of 2: Line 3 is not JSON\. Fix: correct it\."),
        pytest.param("SIGTERM", 1, 143, r"Stopped after step 10\.", marks=ON_DEMAND),
    ],
)
def test_processes_without_an_agent_end_together(tmp_path, kind, failing, code, message):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [make_process(_join, kind, failing, rank, port, tmp_path) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        process.kill()
    codes = [process.exitcode for process in processes]
    texts = [(tmp_path / f"stderr-{rank}").read_text() for rank in range(2)]
    assert codes == [-signal.SIGKILL if kind == "SIGKILL" and rank == failing else code for rank in range(2)], texts
    lines = "".join(texts).strip()
    assert re.fullmatch(rf"(?:{message})(\nMore: \S+)?", lines), lines


@pytest.mark.slow
@pytest.mark.timeout(200)
@ON_DEMAND
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.rank}-{case.stage}")
def test_a_failure_of_one_process_ends_all(launch, tmp_path, case):
    before, started = _list_shared_memory(), time.monotonic()
    process = launch(2, case.kind, case.rank, case.stage, SILENCE_SECONDS)
    code, stdout, stderr, pids, files = _finish(process, tmp_path)
    seconds = time.monotonic() - started
    _record(case, seconds, code, stderr)
    assert re.fullmatch(rf"(?:{case.message})(\nMore: \S+)?", stderr.strip()), stderr
    assert code == case.code
    assert stdout == ""
    assert seconds < BOUND_SECONDS
    assert pids == [] and _list_shared_memory() - before == set()
    assert files == ([] if case.stage != "writing" else ["run.part"])


@ON_DEMAND
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("seconds", [0.5, 3, 8, 12])
def test_processes_end_when_their_launcher_is_killed(launch, tmp_path, seconds):
    process = launch(2, "none", 0, "", SILENCE_SECONDS)
    time.sleep(seconds)
    process.kill()
    process.wait()
    deadline = time.monotonic() + BOUND_SECONDS
    while find_processes(f"LORA_CHAT_TEST={tmp_path}") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert find_processes(f"LORA_CHAT_TEST={tmp_path}") == []
    _, stderr = process.communicate()
    assert "Traceback" not in stderr
    assert stderr.count("Error: ") <= 1


@ON_DEMAND
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("seconds", [0.5, 3, 6, 9])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_stops_at_any_time(launch, tmp_path, seconds, number, code):
    process = launch(2, "none", 0, "", SILENCE_SECONDS)
    time.sleep(seconds)
    process.send_signal(number)
    returned, stdout, stderr, pids, files = _finish(process, tmp_path)
    assert (pids, files) == ([], [])
    if returned == 0:
        assert stdout == '{"steps": 40}\n'
    elif seconds > 3 and returned != -number:  # earlier Python itself is starting
        assert returned == code and stdout == ""
        assert re.fullmatch(r"Stopped( after step \d+| before the run began)?\.", stderr.strip()), stderr


def _record(case: Case, seconds: float, code: int, stderr: str) -> None:
    """Append a line for the record."""
    if path := os.environ.get("LORA_CHAT_FAILURE_TABLE"):
        line = {"kind": case.kind, "rank": case.rank, "stage": case.stage, "seconds": round(seconds, 1), "code": code}
        with Path(path).open("a") as file:
            file.write(json.dumps({**line, "stderr": stderr}) + "\n")
