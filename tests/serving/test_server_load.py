"""Load and random requests on a real server, as `make serve-test` does for longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "benchmarks" / "serving"

BUSY = [f"--serve-option=--max-{name}" for name in ("running=2", "waiting=2", "requests=12")]


@pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
@pytest.mark.parametrize(
    "words",
    [
        ["load.py", "tiny-random", "--seconds", "5"],
        ["load.py", "tiny-random", "--seconds", "5", *BUSY],
        ["fuzz.py", "tiny-random", "--requests", "1000"],
    ],
    ids=["load", "busy", "fuzz"],
)
def test_a_server_survives(words):
    done = subprocess.run([sys.executable, str(TOOLS / words[0]), *words[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
