"""The output of `sft --resume`, and errors that stop a run before it begins."""

import fcntl
import json
import resource
import shutil

import pytest

from lora_chat.cli import main
from lora_chat.models import adapter_files
from lora_chat.models.bundled import find_bundled_base
from lora_chat.pipeline import load_adapted, saved_training
from lora_chat.planning import disk_space

pytestmark = pytest.mark.slow


@pytest.fixture
def sft(cache_home, tmp_path, capsys):
    """Return a function that runs the command on the smoke recipe; it returns exit code and stderr."""

    def run(*arguments, **settings):
        keys = {"output.directory": tmp_path / "runs", "checkpoint.every_steps": 1, "evaluation.samples": 0}
        keys |= {name.replace("__", "."): value for name, value in settings.items()}
        words = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
        code = main(["sft", "recipes/smoke.yaml", *words, *arguments])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def cut(sft, tmp_path, monkeypatch):
    """Return the folder of a run that was interrupted after step 3."""

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saved_training, "save_adapter", interrupt)
        assert sft()[0] == 130
    run = tmp_path / "runs" / "smoke-1"
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    return run


@pytest.mark.slow
def test_resume_begins_a_first_run_and_leaves_a_finished_one(sft, tmp_path):
    code, err = sft("--resume")
    assert code == 0
    assert "This recipe has no run yet; this is the first." in err
    code, err = sft("--resume", "--json")
    assert code == 0
    assert "smoke-1 is finished; there is nothing to do" in err
    assert not (tmp_path / "runs" / "smoke-2").exists()
    code, err = sft("--resume", "--accept-change", "training.epochs", training__epochs=3)
    assert code == 0
    assert "Accepted: training.epochs: 2.0 -> 3.0." in err
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs" / "smoke-1" / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_accept_change_needs_resume(sft, tmp_path):
    code, err = sft("--accept-change", "training.epochs")
    assert code == 2
    assert "--accept-change needs --resume" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_keeps_no_adapter_that_reads_back_differently(sft, tmp_path, monkeypatch):
    stock = adapter_files.write_peft_adapter

    def write_weights(model, folder):
        stock(model, folder)
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(adapter_files, "write_peft_adapter", write_weights)
    code, err = sft()
    assert code == 10
    assert "does not have the values that were written" in err
    assert not (tmp_path / "runs" / "smoke-1" / "adapter").exists()
    monkeypatch.undo()
    assert sft("--resume")[0] == 0


def test_prints_the_step_that_it_continues_after(sft, cut):
    rows = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"seconds": row["seconds"] + 1000} if "seconds" in row else row for row in rows]
    (cut / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, err = sft("--resume")
    assert code == 0
    assert f"Continuing {cut} after step 3." in err
    seconds = json.loads((cut / "result.json").read_text())["seconds"]
    assert 1000 < seconds["train"] < seconds["total"] < 1300  # the time before the interruption counts in both


@pytest.mark.slow
def test_skips_a_damaged_checkpoint_with_the_reason(sft, cut):
    path = cut / "checkpoints" / "checkpoint-3" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, err = sft("--resume", str(cut))
    assert code == 7
    assert "Checkpoint checkpoint-3 is set aside: optimizer.pt is damaged." in err
    assert "all of its checkpoints are damaged" in err
    assert path.is_file()


def test_does_not_start_over_if_all_checkpoints_are_damaged(sft, cut):
    before = sorted(path.relative_to(cut) for path in cut.rglob("*"))
    (cut / "checkpoints" / "checkpoint-3" / "rng_state.pth").unlink()
    for _ in range(2):
        code, err = sft("--resume")
        assert code == 7
        assert "rng_state.pth is missing" in err
        assert "Nothing was changed. Fix: start a new run without --resume." in err
    after = sorted(path.relative_to(cut) for path in cut.rglob("*"))
    assert len(before) == len(after) + 1


@pytest.mark.parametrize(
    ("settings", "field", "values"),
    [
        ({"training__seed": 5}, "training.seed", "it was 0, now it is 5"),
        pytest.param({"adapter__rank": 8}, "adapter.rank", "it was 4, now it is 8", marks=pytest.mark.slow),
        pytest.param({"data__max_length": 90, "data__over_long": "drop"}, "data.rows", "...", marks=pytest.mark.slow),
    ],
)
def test_refuses_a_changed_recipe_and_names_the_field(sft, cut, settings, field, values):
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    code, err = sft("--resume", **settings)
    assert code == 7
    assert f"{field}: it was" in err
    assert values in err
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before
    code, err = sft("--resume", "--accept-change", field, **settings)
    assert code == 2
    assert "this change cannot be accepted" in err


@pytest.mark.slow
def test_refuses_another_base(sft, cut, tmp_path):
    base = shutil.copytree(find_bundled_base("tiny-random"), tmp_path / "base")
    (base / "sha256.json").unlink()
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    code, err = sft("--resume", base__name=base)
    assert code == 7
    assert "base.weights: it was" in err


def test_refuses_a_run_in_use(sft, cut):
    with (cut / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, err = sft("--resume")
    assert code == 9
    assert f"Another process is training in {cut}" in err


@pytest.mark.slow
def test_reports_a_full_disk_before_the_base_is_loaded(sft, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("loaded")

    free = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(load_adapted, "load_base_model", never)
    code, err = sft()
    assert code == 4
    assert f"Not enough disk space in {tmp_path / 'runs' / 'smoke-1'}: the run needs 6.4 MB" in err
    assert "3.0 MB are free" in err


@pytest.mark.slow
def test_full_disk_leaves_no_incomplete_checkpoint(sft, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        code, err = sft(checkpoint__every_steps="null")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoints = tmp_path / "runs" / "smoke-1" / "checkpoints"
    assert code == 4
    assert f"No space left to write a checkpoint: {checkpoints / 'checkpoint-2'}" in err
    assert "About 2.1 MB are needed" in err
    assert list(checkpoints.iterdir()) == []


@pytest.mark.slow
def test_run_size_stays_below_the_planned_size(sft, tmp_path):
    sft(checkpoint__keep=3, adapter__rank=64)
    run = tmp_path / "runs" / "smoke-1"
    written = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    trained = json.loads((run / "result.json").read_text())["trainable_parameters"]
    assert 3 * 12 * trained < written < disk_space.run_bytes(trained, keep=3)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["checkpoint-2", "checkpoint-3", "checkpoint-4", "committed"]


@pytest.mark.slow
def test_saves_no_pickled_arguments_and_no_token(sft, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "canary" * 6)
    _, err = sft()
    assert "canary" not in err
    for path in tmp_path.rglob("*"):
        assert path.name != "training_args.bin"
        assert path.is_dir() or b"canary" not in path.read_bytes()
    run = tmp_path / "runs" / "smoke-1"
    pickled = [path for path in run.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert pickled
    assert all(path.parent.parent == run / "checkpoints" for path in pickled)
