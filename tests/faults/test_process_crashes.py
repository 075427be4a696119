"""Crash tests of two processes: one is killed anywhere in a step, and 1, 2 or 3 processes continue the run.

They run with `make crash-test`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_crashes import HERE, POINTS, SEED, injector  # noqa: F401

pytestmark = pytest.mark.skipif(POINTS != "all" or sys.platform != "linux", reason="on demand")

MAX_SECONDS = 90
"""Longest time from the start of the processes to the end of the last one, one of which was killed."""


def test_continues_with_any_number_of_processes_after_a_kill(injector, cache_home, tmp_path):  # noqa: F811
    task = tmp_path / "task.json"
    points = os.environ.get("LORA_CHAT_PROCESS_CRASH_POINTS", "all")
    task.write_text(json.dumps({"out": str(tmp_path), "count": points, "seed": SEED}))
    process = subprocess.run(
        [sys.executable, str(HERE / "processes_harness.py"), str(task)],
        env={**os.environ, "LD_PRELOAD": str(injector), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    if table := os.environ.get("LORA_CHAT_PROCESS_CRASH_TABLE"):
        Path(table).write_text(process.stdout)
    results = [json.loads(line) for line in process.stdout.splitlines()]
    failures = [(find_failure(result), result) for result in results if find_failure(result)]
    for failure, result in failures[:5]:
        print(failure, json.dumps(result, indent=1).replace("\\n", "\n"))
    assert results and not failures, f"{len(failures)} of {len(results)} points"


def find_failure(result):
    """Return why a point failed, or None."""
    victim, survivor = result["exit_codes"][result["victim"]], result["exit_codes"][1 - result["victim"]]
    if victim != -9:
        return f"the process was not killed: {victim}"
    if survivor in (None, 0) or survivor < 0 or result["seconds"] > MAX_SECONDS:
        return f"the other process ended with {survivor} after {result['seconds']} s"
    if "Traceback" in result["output"] or "process" not in result["output"].lower():
        return "the other process printed no message, or a traceback"
    if set(result["resumed"]) != {0}:
        return f"resuming with {result['processes']} processes ended with {result['resumed']}"
    return "; ".join(result["differences"]) or None
