"""A run of two processes in which one is killed or stopped ends at any stage, and continues (on demand)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
STAGES = {
    "data": "Preparing the base|Run  ",
    "loading": "Memory  ",
    "training": "step 1/",
    "commit": "step 1/",
    "validation": "step 4/",
    "comparison": "Measuring the base",
}
"""Text on stderr at the beginning of each stage."""
_COMMIT_SECONDS = 0.4
"""Time from the first step to later ones, each of which is committed."""
LOST = r"Error: Process {n} of 2 was ended by SIGKILL, usually because the system ran out of memory .*"


class Run:
    """A run of `lora-chat sft --processes 2` whose stderr is read while it works."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.marker = f"LORA_CHAT_TEST={folder}"
        self.log = folder / "stderr"
        (folder / "tmp").mkdir(exist_ok=True)
        self.command = [sys.executable, "-m", "lora_chat", "sft", "recipes/smoke.yaml", "--json"]
        for setting in ("checkpoint.every_steps=1", f"output.directory={folder / 'runs'}", *arguments):
            self.command += ["--set", setting]
        name, value = self.marker.split("=", 1)
        self.environment = {**os.environ, name: value, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}

    def start(self, *options: str) -> subprocess.Popen:
        with self.log.open("w") as log:
            return subprocess.Popen(
                [*self.command, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                cwd=ROOT,
                text=True,
                start_new_session=True,
            )

    def wait_for(self, stage: str, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + 300
        while not re.search(STAGES[stage], self.log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        time.sleep(_COMMIT_SECONDS if stage == "commit" else 0)

    def find_pids(self, rank: int | None = None) -> list[int]:
        """Return all processes of this run, or the one with a number."""
        pids = []
        for folder in Path("/proc").iterdir():
            try:
                if not folder.name.isdigit():
                    continue
                variables = (folder / "environ").read_bytes().split(b"\0")
                is_rank = f"RANK={rank}".encode() in variables and b"__main__.py" in (folder / "cmdline").read_bytes()
                if self.marker.encode() in variables and (rank is None or is_rank):
                    pids.append(int(folder.name))
            except OSError:
                continue
        return pids


@pytest.fixture
def run(cache_home, tmp_path):
    """Return a run; kill what is left of it at the end."""
    made = Run(tmp_path)
    yield made
    for pid in made.find_pids():
        os.kill(pid, signal.SIGKILL)


def finish(run: Run, process: subprocess.Popen) -> tuple[int, list[str]]:
    """Return exit code and the lines of stderr that are messages about the end; assert that nothing is left."""
    process.communicate(timeout=300)
    deadline = time.monotonic() + 5
    while run.find_pids() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.find_pids() == []
    left = [path.name for path in Path(run.environment["TMPDIR"]).iterdir()]
    assert [name for name in left if not name.startswith("torchinductor_")] == []
    lines = run.log.read_text().splitlines()
    assert not any("Traceback" in line for line in lines), lines
    return process.returncode, [line for line in lines if line.startswith(("Error", "Stopped", "Process"))]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_which_continues(run, tmp_path, stage, rank):
    process = run.start("--processes", "2")
    run.wait_for(stage, process)
    for pid in run.find_pids(rank)[:1]:
        os.kill(pid, signal.SIGKILL)
    code, messages = finish(run, process)
    assert code == 11
    assert len([line for line in messages if line.startswith("Error")]) == 1, messages
    assert re.fullmatch(LOST.replace("{n}", str(rank + 1)), messages[-1]), messages
    if stage in ("training", "comparison") and rank == 1:
        again = run.start("--processes", "3", "--resume")
        stdout, _ = again.communicate(timeout=300)
        assert again.returncode == 0, run.log.read_text()
        assert json.loads(stdout)["steps"] == json.loads(stdout)["planned_steps"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("target", "number", "code"), [("rank", signal.SIGTERM, 143), ("launcher", signal.SIGINT, 130)]
)
def test_a_signal_stops_all_processes_with_one_message(run, stage, target, number, code):
    process = run.start("--processes", "2")
    run.wait_for(stage, process)
    pids = run.find_pids(1)[:1] if target == "rank" else [process.pid]
    for pid in pids:
        os.kill(pid, number)
    returned, messages = finish(run, process)
    assert returned == code, messages
    assert len([line for line in messages if line.startswith(("Error", "Stopped"))]) == 1, messages
