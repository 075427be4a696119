"""Every file operation of a run fails once, in every way; the run goes on and ends at the same bytes.

By default a random choice of points; `LORA_CHAT_CRASH_POINTS=all` (make crash-test) takes every one, and
`LORA_CHAT_CRASH_SEED` repeats a choice.
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
POINTS = os.environ.get("LORA_CHAT_CRASH_POINTS", "40")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the injector is made for Linux's LD_PRELOAD"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to build the fault injector"),
]


@pytest.fixture(scope="session")
def injector(tmp_path_factory):
    library = tmp_path_factory.mktemp("injector") / "injector.so"
    source = str(HERE / "injector.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"], check=True)
    return library


@pytest.fixture
def inject(injector, cache_home, tmp_path):
    """Runs points; returns the operations of an undisturbed run, and what each point came to."""

    def run(points):
        task = tmp_path / "task.json"
        task.write_text(json.dumps({"out": str(tmp_path), "points": points}))
        done = subprocess.run(
            [sys.executable, str(HERE / "harness.py"), str(task)],
            env={**os.environ, "LD_PRELOAD": str(injector), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        if table := os.environ.get("LORA_CHAT_CRASH_TABLE"):
            with Path(table).open("a") as file:
                file.write(done.stdout)
        first, *found = map(json.loads, done.stdout.splitlines())
        return first["operations"], found

    return run


@pytest.mark.parametrize("modes", [["kill", "full"], ["torn", "broken"]], ids="-".join)
def test_every_point_resumes_to_the_same_bytes(inject, modes):
    print(f"LORA_CHAT_CRASH_SEED={SEED}")
    operations, found = inject({"modes": modes, "count": POINTS, "seed": SEED})
    check_order(operations)
    assert len(found) == 2 * (len(operations) if POINTS == "all" else int(POINTS))
    wrong = [one for one in found if explain(one) is not None]
    for one in wrong[:5]:
        print(explain(one), json.dumps(one, indent=1).replace("\\n", "\n"))
    assert not wrong, f"{len(wrong)} of {len(found)} points, LORA_CHAT_CRASH_SEED={SEED}"


def check_order(operations):
    """A checkpoint counts only once it is on disk, and an older one goes only behind one that counts."""
    for step in range(1, 5):
        folder = f"/run-1/checkpoints/checkpoint-{step}"
        lines = [line.split(" ", 2)[1:] for line in operations]
        written = {path for kind, path in lines if kind == "write" and path.startswith(folder + "/")}
        counts = lines.index(["rename", f"{folder}/manifest.json"])
        synced = {path for kind, path in lines[:counts] if kind == "fsync"}
        temporary = {path for path in written if "/.tmp" in path}  # safetensors writes, then renames
        assert written - temporary <= synced
        assert f"{folder}/adapter_model.safetensors" in synced
        assert "/run-1/metrics.jsonl" in synced
        assert lines.index(["fsync", folder], counts) < lines.index(["fsync", "/run-1/checkpoints"], counts)
        gone = [i for i, (kind, path) in enumerate(lines) if kind == "unlink" and path.startswith(folder + "/")]
        if step < 3:  # two are kept
            newer = lines.index(["rename", f"/run-1/checkpoints/checkpoint-{step + 2}/manifest.json"])
            assert gone[0] > lines.index(["fsync", "/run-1/checkpoints"], newer)
            assert lines[gone[0]][1] == f"{folder}/manifest.json"
        else:
            assert not gone
    adapter = next(i for i, (kind, path) in enumerate(lines) if (kind, path) == ("rename", "/run-1/adapter"))
    assert any(kind == "fsync" and path.endswith("/adapter_model.safetensors") for kind, path in lines[:adapter][-8:])


CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
IN_TRAINING = [
    "in the middle of an accumulation",
    "before the optimizer",
    "writing a checkpoint",
    "committing",
    "deleting an old checkpoint",
    "measuring the validation loss",
]
AT_ONCE = ["encoding", "loading", "saving the adapter", "comparing"]


def test_signals_in_every_phase(inject):
    points = [
        *(["signals", [phase, ["SIGTERM"]]] for phase in [*IN_TRAINING, *AT_ONCE, "the last step"]),
        *(["signals", [phase, ["SIGINT"]]] for phase in [IN_TRAINING[0], "loading", "trying the largest micro-batch"]),
        *(["signals", [phase, ["SIGINT", "SIGTERM"]]] for phase in IN_TRAINING),
        ["signals", [IN_TRAINING[1], ["SIGHUP"]]],
    ]
    _, found = inject(points)
    assert len(found) == len(points)
    for one in found:
        phase, names = one["point"]
        said = one["said"]
        assert one["same"], one
        assert one["ended"] == CODES[names[-1]], one
        assert "Traceback" not in said
        if phase == "encoding":
            assert "nothing was begun" in said
        elif phase in ("comparing", "the last step"):
            assert "The adapter is whole" in said
            assert "lora-chat eval" in said
        else:
            assert "Go on: lora-chat sft recipes/smoke.yaml --set" in said, one
            assert f"--resume {one['folder']}/run-1" in said
        if phase in IN_TRAINING and len(names) == 1:
            assert "a checkpoint of it is whole" in said, one
            assert "lora-chat chat" in said
        if len(names) == 2:
            assert "Stopped while training. " in said


def explain(one):
    """What is wrong with a point, or None."""
    if not one["same"]:
        return f"resumed with {one['resumed']}, and the adapter or the metrics are others"
    codes = {"kill": (-9, 0), "torn": (-9, 0), "full": (4, 0), "broken": (10, 0)}[one["mode"]]
    if one["ended"] not in codes:
        return f"ended with {one['ended']}"
    said = one.get("said", "")
    if "Traceback" in said:
        return "said a traceback"
    if one["ended"] in (4, 10) and one["folder"] not in said.split("Error:")[-1]:
        return "named no path"
    return None
