"""Every file operation of a run fails once, in every way; the run goes on and ends at the same bytes.

By default a random choice of points and signals; `LORA_CHAT_CRASH_POINTS=all` (make crash-test) takes every one, and
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
POINTS = os.environ.get("LORA_CHAT_CRASH_POINTS", "4")

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


CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
IN_TRAINING = [
    "in the middle of an accumulation",
    "before the optimizer",
    "writing a checkpoint",
    "committing",
    "deleting an old checkpoint",
    "measuring the validation loss",
]
AT_ONCE = ["encoding", "loading", "trying the largest micro-batch", "saving the adapter", "comparing", "the last step"]
TWICE = [[phase, ["SIGINT", "SIGTERM"]] for phase in IN_TRAINING]
ONCE = [[phase, ["SIGTERM"]] for phase in IN_TRAINING + AT_ONCE]
OTHERS = [["loading", ["SIGINT"]], ["before the optimizer", ["SIGINT"]], ["before the optimizer", ["SIGHUP"]]]


@pytest.mark.parametrize(
    ("modes", "signals"), [(["kill", "full"], TWICE + OTHERS), (["torn", "broken"], ONCE)], ids=["kill", "torn"]
)
def test_every_point_resumes_to_the_same_bytes(injector, cache_home, tmp_path, modes, signals):
    print(f"LORA_CHAT_CRASH_SEED={SEED}")
    if POINTS != "all":
        signals = random.Random(SEED).sample(signals, min(int(POINTS), len(signals)))
    task = tmp_path / "task.json"
    wanted = {"out": str(tmp_path), "modes": modes, "count": POINTS, "seed": SEED, "signals": signals}
    task.write_text(json.dumps(wanted))
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
    check_order(first["operations"])
    count = len(first["operations"]) if POINTS == "all" else int(POINTS)
    assert len(found) == len(signals) + len(modes) * count
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


def explain(one):
    """What is wrong with a point, or None."""
    if not one["same"]:
        return f"resumed with {one['resumed']}, and the adapter or the metrics are others"
    said = one.get("said", "")
    if "Traceback" in said:
        return "said a traceback"
    if one["mode"] == "signals":
        return explain_signals(*one["point"], one["ended"], one["folder"], said)
    if one["ended"] not in {"kill": (-9, 0), "torn": (-9, 0), "full": (4, 0), "broken": (10, 0)}[one["mode"]]:
        return f"ended with {one['ended']}"
    if one["ended"] in (4, 10) and one["folder"] not in said.split("Error:")[-1]:
        return "named no path"
    return None


def explain_signals(phase, names, ended, folder, said):
    if ended != CODES[names[-1]]:
        return f"ended with {ended}"
    if phase == "encoding":
        wanted = ["nothing was begun"]
    elif phase in ("comparing", "the last step"):
        wanted = ["The adapter is saved", "lora-chat eval"]
    else:
        wanted = ["Continue: lora-chat sft recipes/smoke.yaml --set", f"--resume {folder}/run-1"]
    if phase == "trying the largest micro-batch":
        wanted.append("There is no checkpoint yet.")
    if phase in IN_TRAINING:
        at_once = len(names) == 2
        wanted += ["Stopped while training. "] if at_once else ["its checkpoint is saved", "lora-chat chat"]
    return next((f"did not say {text}" for text in wanted if text not in said), None)
