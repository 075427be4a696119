"""Run folders of earlier versions can still be opened, evaluated, merged, packed and resumed."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from lora_chat.cli import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
BASE = FIXTURES / "run-of-version-1" / "base"
OLD, SIGNED = "run-of-version-1", "run-of-version-2"
"""Folders of an unsigned run, and of a run that was signed with the key in the folder."""


@pytest.fixture(params=[OLD, SIGNED])
def version(request):
    return request.param


@pytest.fixture
def old_run(tmp_path, monkeypatch, version):
    """Return a copy of the run, with its base in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    bases = tmp_path / "cache" / "lora-chat" / "bases"
    keys = tmp_path / "config" / "lora-chat"
    for folder in (bases, keys):
        folder.mkdir(parents=True)
    for folder in (bases, bases.parent, keys):
        folder.chmod(0o700)
    if version == SIGNED:
        shutil.copyfile(FIXTURES / SIGNED / "user.key", keys / "user.key")
        (keys / "user.key").chmod(0o600)
    shutil.copytree(BASE, bases / "tiny-random-1")
    shutil.copytree(FIXTURES / version / "smoke-1", tmp_path / "runs" / "smoke-1")
    return tmp_path / "runs" / "smoke-1"


def call(*arguments, stdin=""):
    """Run a command here; return its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(stdin))
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def test_chats_with_an_old_run(old_run):
    code, said, notices = call("chat", old_run, "--max-new-tokens", 4, stdin="hi\n")
    assert code == 0, notices
    assert said.strip()


def test_evaluates_an_old_run(old_run):
    before = json.loads((old_run / "comparison.json").read_text())
    code, out, notices = call("eval", old_run, "--json")
    assert code == 0, notices
    found = json.loads(out)
    for side in ("base", "adapted"):
        assert found["validation_loss"][side] == pytest.approx(before["validation_loss"][side], abs=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_exporters")
def test_merges_packs_and_verifies_an_old_run(old_run, tmp_path):
    code, _, notices = call("merge", old_run, "--to", tmp_path / "merged", "--accept")
    assert code == 0, notices
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    code, _, notices = call("pack", old_run, "--out", tmp_path / "old.lorachat")
    assert code == 0, notices
    code, out, notices = call("verify", tmp_path / "old.lorachat", "--json")
    assert code == 0, notices
    assert json.loads(out)["passed"]


@pytest.mark.slow
def test_resumes_an_old_run(old_run, version):
    # The library versions and the processor may differ from those of the training.
    versions = json.loads((old_run / "versions.json").read_text())
    words = [word for name in versions for word in ("--accept-change", f"versions.{name}")]
    settings = ["--set", f"output.directory={old_run.parent}", "--set", "evaluation.samples=0"]
    command = ["sft", FIXTURES / version / "smoke.yaml", "--resume", old_run, *settings, *words]
    if version == OLD:  # simulate an interruption after the first checkpoint
        shutil.rmtree(old_run / "checkpoints" / "checkpoint-4")
        shutil.rmtree(old_run / "adapter")
        (old_run / "result.json").unlink()
        before = {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}
        code, _, notices = call(*command)
        assert code == 7 and "it is not signed" in notices and notices.rstrip().endswith("--adopt")
        assert {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()} == before
        command.append("--adopt")
    else:  # the signed run is finished, so train more epochs
        command += ["--set", "training.epochs=3", "--accept-change", "training.epochs"]
    code, _, notices = call(*command)
    assert code == 0, notices
    steps = [json.loads(line)["step"] for line in (old_run / "metrics.jsonl").open()]
    assert steps == list(range(1, 5 if version == OLD else 7))
    assert (old_run / "adapter" / "adapter_model.safetensors").is_file()
