"""Limits of a process also work during one long operation, and end with their block."""

import subprocess
import sys
import time

import pytest

HEAD = "from lora_chat.system.memory_usage import *\nfrom lora_chat.system.process_limits import *\n"


def run(script):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HEAD + script], capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - began


@pytest.mark.parametrize("work", ["while True: pass", "9 ** (9 ** 9)", "import time; time.sleep(60)"])
def test_endless_work_ends_the_process(work):
    done, seconds = run(
        f"n = 9\nwith time_and_memory_limit(0.5, 1 << 30, address_space_bytes()):\n    {work.replace('9 **', 'n **')}\n"
    )
    assert done.returncode != 0 and seconds < 30
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the address space")
def test_memory_is_limited_only_inside_the_block():
    done, _ = run(
        "try:\n    with time_and_memory_limit(30, 1 << 28, address_space_bytes()):\n        'a' * (1 << 30)\n"
        "except MemoryError:\n    print('refused', len('a' * (1 << 30)))\n"
    )
    assert done.stdout == f"refused {1 << 30}\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_no_file_can_be_written(tmp_path):
    done, _ = run(f"forbid_file_writes()\nopen({str(tmp_path / 'x')!r}, 'w').write('a' * 99999)\n")
    assert "File too large" in done.stderr and (tmp_path / "x").stat().st_size == 0
