"""Crash tests: after a fault in any file operation of a run, the resumed run ends with the same bytes.

By default the test draws random points and signals. `LORA_CHAT_CRASH_POINTS=all` (make crash-test) tries all of them,
and `LORA_CHAT_CRASH_SEED` repeats a draw.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
SEED = int(os.environ.get("LORA_CHAT_CRASH_SEED", random.SystemRandom().randrange(10**6)))
POINTS = os.environ.get("LORA_CHAT_CRASH_POINTS", "1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the injector needs Linux's LD_PRELOAD"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to build the fault injector"),
]


@pytest.fixture(scope="session")
def injector(tmp_path_factory):
    library = tmp_path_factory.mktemp("injector") / "injector.so"
    source = str(HERE / "injector.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"], check=True)
    return library


SIGNAL_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
IN_TRAINING = [
    "in the middle of an accumulation",
    "before the optimizer",
    "writing a checkpoint",
    "committing",
    "deleting an old checkpoint",
    "measuring the validation loss",
]
OUTSIDE_TRAINING = [
    "encoding",
    "loading",
    "trying the largest micro-batch",
    "saving the adapter",
    "comparing",
    "the last step",
]
TWO_SIGNALS = [[phase, ["SIGINT", "SIGTERM"]] for phase in IN_TRAINING]
ONE_SIGNAL = [[phase, ["SIGTERM"]] for phase in IN_TRAINING + OUTSIDE_TRAINING]
OTHER_SIGNALS = [["loading", ["SIGINT"]], ["before the optimizer", ["SIGINT"]], ["before the optimizer", ["SIGHUP"]]]


MODES = [(["kill", "full"], TWO_SIGNALS + OTHER_SIGNALS), (["torn", "broken"], ONE_SIGNAL)]
if POINTS != "all":  # one process, because half of its time goes into imports and two complete runs
    MODES = [([mode for modes, _ in MODES for mode in modes], [phase for _, phases in MODES for phase in phases])]


@pytest.mark.parametrize(("modes", "signals"), MODES, ids=[modes[0] for modes, _ in MODES])
def test_resumes_to_the_same_bytes_after_any_fault(injector, cache_home, tmp_path, modes, signals):
    print(f"LORA_CHAT_CRASH_SEED={SEED}")
    if POINTS != "all":
        signals = random.Random(SEED).sample(signals, min(2 * int(POINTS), len(signals)))
    task = tmp_path / "task.json"
    options = {"out": str(tmp_path), "modes": modes, "count": POINTS, "seed": SEED, "signals": signals}
    task.write_text(json.dumps(options))
    process = subprocess.run(
        [sys.executable, str(HERE / "harness.py"), str(task)],
        env={**os.environ, "LD_PRELOAD": str(injector), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    if table := os.environ.get("LORA_CHAT_CRASH_TABLE"):
        with Path(table).open("a") as file:
            file.write(process.stdout)
    check_table(process.stdout, tmp_path / "points.jsonl")
    first, *results = map(json.loads, process.stdout.splitlines())
    check_order(first["operations"])
    count = len(first["operations"]) if POINTS == "all" else int(POINTS)
    assert len(results) == len(signals) + len(modes) * count
    failures = [result for result in results if find_failure(result) is not None]
    for result in failures[:5]:
        print(find_failure(result), json.dumps(result, indent=1).replace("\\n", "\n"))
    assert not failures, f"{len(failures)} of {len(results)} points, LORA_CHAT_CRASH_SEED={SEED}"


def check_table(rows, path):
    """The program that prints the table of CRASHES.md reads these rows."""
    path.write_text(rows)
    command = [sys.executable, str(HERE.parents[1] / "benchmarks" / "crash_table.py"), str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "resumed to the same bytes" in printed and "unexplained:" not in printed


def check_order(operations):
    """Assert that a checkpoint is synced before its manifest, and deleted only after a newer one is committed."""
    for step in range(1, 5):
        folder = f"/run-1/checkpoints/checkpoint-{step}"
        lines = [line.split(" ", 2)[1:] for line in operations]
        written_paths = {path for kind, path in lines if kind == "write" and path.startswith(folder + "/")}
        committed = lines.index(["rename", f"{folder}/manifest.json"])
        synced = {path for kind, path in lines[:committed] if kind == "fsync"}
        temporary = {path for path in written_paths if "/.tmp" in path}  # safetensors writes, then renames
        assert written_paths - temporary <= synced
        assert f"{folder}/adapter_model.safetensors" in synced
        assert "/run-1/metrics.jsonl" in synced
        assert lines.index(["fsync", folder], committed) < lines.index(["fsync", "/run-1/checkpoints"], committed)
        deleted = [i for i, (kind, path) in enumerate(lines) if kind == "unlink" and path.startswith(folder + "/")]
        if step < 3:  # the last two are kept
            newer = lines.index(["rename", f"/run-1/checkpoints/checkpoint-{step + 2}/manifest.json"])
            assert deleted[0] > lines.index(["fsync", "/run-1/checkpoints"], newer)
            assert lines[deleted[0]][1] == f"{folder}/manifest.json"
        else:
            assert not deleted
    adapter = next(i for i, (kind, path) in enumerate(lines) if (kind, path) == ("rename", "/run-1/adapter"))
    assert any(kind == "fsync" and path.endswith("/adapter_model.safetensors") for kind, path in lines[:adapter][-8:])


def find_failure(result):
    """Return why a point failed, or None."""
    if not result["same"]:
        return f"resumed with {result['resumed']}, and the adapter or the metrics differ"
    output = result.get("output", "")
    if "Traceback" in output:
        return "printed a traceback"
    if result["mode"] == "signals":
        return find_signal_failure(*result["point"], result["exit_code"], result["folder"], output)
    if result["exit_code"] not in {"kill": (-9, 0), "torn": (-9, 0), "full": (4, 0), "broken": (10, 0)}[result["mode"]]:
        return f"exited with {result['exit_code']}"
    if result["exit_code"] in (4, 10) and result["folder"] not in output.split("Error:")[-1]:
        return "did not name the path"
    return None


def find_signal_failure(phase, signal_names, exit_code, folder, output):
    """Return why a run that received signals failed, or None."""
    if exit_code != SIGNAL_EXIT_CODES[signal_names[-1]]:
        return f"exited with {exit_code}"
    if phase == "encoding":
        expected_texts = ["Stopped before the run began."]
    elif phase in ("comparing", "the last step"):
        expected_texts = ["The adapter is saved", "lora-chat eval"]
    else:
        expected_texts = ["Continue: lora-chat sft recipes/smoke.yaml --set", f"--resume {folder}/run-1"]
    if phase == "trying the largest micro-batch":
        expected_texts.append("There is no checkpoint yet.")
    if phase in IN_TRAINING:
        sent_twice = len(signal_names) == 2
        expected_texts += ["Stopped while training. "] if sent_twice else ["its checkpoint is saved", "lora-chat chat"]
    return next((f"did not print {text}" for text in expected_texts if text not in output), None)
