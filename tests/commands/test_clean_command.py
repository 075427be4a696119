"""`lora-chat clean` deletes caches and old checkpoints, and nothing else, whenever it is stopped."""

import io
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

import lora_chat
from lora_chat.cli import main
from lora_chat.pipeline import clean
from lora_chat.pipeline.cache_kinds import CACHE_KINDS
from lora_chat.runs.checkpoints import commit_checkpoint, find_newest_checkpoint
from lora_chat.runs.lock import lock_run_folder

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-of-version-1" / "smoke-1"
HOUR, DAY = 3600, 86400


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a cache with an entry of each kind, last used an hour ago; the working directory has no runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "proc").mkdir()  # other processes of this machine make the scan slow
    (tmp_path / "proc" / "1").symlink_to("/proc/self")
    monkeypatch.setattr("lora_chat.system.open_files._PROCESSES", tmp_path / "proc")
    folder = tmp_path / "cache" / "lora-chat"
    for name in ("bases/tiny-1", "dialogues/aaa", "audits", "probes", "hub", "hub-pending"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file.json").write_bytes(b"x" * 1000)
    (folder / "digests.json").write_text("{}")
    (folder / "bases" / ".lock").touch()
    folder.chmod(0o700)
    set_age(folder, HOUR)
    return folder


@pytest.fixture
def finished_run(cache, tmp_path):
    """Return a finished run with three checkpoints."""
    run = tmp_path / "runs" / "good-1"
    shutil.copytree(OLD_RUN, run, ignore=shutil.ignore_patterns("checkpoint-*"))
    for step in (2, 4, 6):
        folder = run / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"w" * 100)
        commit_checkpoint(folder, {"base.version": 2})
    return run


def set_age(path, seconds):
    then = time.time() - seconds
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(each, (then, then), follow_symlinks=False)


def list_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def clean_as_json(capsys, *arguments, code=0):
    assert main(["clean", "--json", *arguments]) == code
    answer = json.loads(capsys.readouterr().out)
    return {kind["kind"]: kind for kind in answer["kinds"]}, answer


def test_dry_run_shows_each_kind_and_deletes_nothing(cache, capsys):
    before = list_files(cache)
    kinds, answer = clean_as_json(capsys, "--dry-run")
    assert answer["freed_bytes"] == 0
    assert list_files(cache) == before
    sizes = {name: kind["selected_bytes"] for name, kind in kinds.items() if kind["selected_bytes"]}
    assert sizes == {**dict.fromkeys(["bases", "dialogues", "audits", "benchmarks", "hub-notes"], 1000), "digests": 2}


def test_deletes_all_caches_but_marks_and_locks(cache, capsys):
    _, answer = clean_as_json(capsys, "--yes")
    assert answer["freed_bytes"] == 5002
    assert list_files(cache) == {"bases/.lock", "hub-pending/file.json"}


def test_asks_only_in_a_terminal(cache, capsys, monkeypatch):
    before = list_files(cache)
    assert main(["clean"]) == 2
    assert list_files(cache) == before
    monkeypatch.setattr("lora_chat.commands.clean.is_terminal", lambda _: True)
    for answer, is_deleted in (("\n", False), ("n\n", False), ("", False), ("y\n", True)):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert main(["clean"]) == 0
        assert (list_files(cache) != before) == is_deleted
    out = capsys.readouterr().out
    assert re.search(r"KIND +BEFORE +AFTER", out)


def test_selects_by_kind_and_age(cache, capsys):
    set_age(cache / "dialogues", 40 * DAY)
    clean_as_json(capsys, "--yes", "--only", "dialogues,audits", "--older-than", "30d")
    assert list_files(cache) >= {"audits/file.json", "bases/tiny-1/file.json"}
    assert not (cache / "dialogues" / "aaa").exists()


@pytest.mark.parametrize("arguments", [["--only", "adapters"], ["--only", ""], ["--runs", "missing"]])
def test_refuses_unknown_kinds_and_folders(cache, arguments):
    assert main(["clean", "--yes", *arguments]) == 2
    assert (cache / "audits" / "file.json").exists()


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1.5d", "3y", ""])
def test_refuses_ages_without_a_unit(cache, age):
    with pytest.raises(SystemExit) as caught:
        main(["clean", "--older-than", age])
    assert caught.value.code == 2


@pytest.mark.skipif(sys.platform != "linux", reason="open files are known on Linux only")
def test_keeps_an_entry_that_a_program_has_open_or_has_just_used(cache, capsys):
    os.utime(cache / "audits" / "file.json")
    with (cache / "bases" / "tiny-1" / "file.json").open("rb"):
        kinds, _ = clean_as_json(capsys, "--yes")
    reasons = {name: kinds[name]["entries"][0]["kept_because"] for name in ("bases", "audits", "dialogues")}
    assert reasons == {"bases": "in use", "audits": "used just now", "dialogues": None}
    assert list_files(cache) >= {"bases/tiny-1/file.json", "audits/file.json"}


def test_keeps_a_base_while_another_process_writes_one(cache, capsys):
    from lora_chat.models.bundled import _lock_bases

    with _lock_bases(cache / "bases"):
        _, answer = clean_as_json(capsys, "--yes", "--only", "bases", code=10)
    assert [entry["reason"] for entry in answer["stayed"]] == ["in use"]
    assert (cache / "bases" / "tiny-1" / "file.json").exists()


def test_a_stopped_deletion_leaves_no_entry_that_looks_complete(cache, capsys, monkeypatch):
    def stop(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clean.shutil, "rmtree", stop)
        assert main(["clean", "--yes", "--only", "bases"]) == 130
    capsys.readouterr()
    assert not (cache / "bases" / "tiny-1").exists()
    (rest,) = [path for path in (cache / "bases").iterdir() if path.name != ".lock"]
    assert rest.name.startswith(".tiny-1-")
    set_age(rest, 2 * DAY)
    clean_as_json(capsys, "--yes", "--only", "bases")
    assert not rest.exists()


def test_follows_no_links(cache, tmp_path, capsys):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "adapter.safetensors").write_text("w")
    (cache / "dialogues" / "link").symlink_to(treasure)
    (cache / "dialogues" / "aaa" / "inner").symlink_to(treasure)
    shutil.rmtree(cache / "audits")
    (cache / "audits").symlink_to(treasure)
    set_age(cache / "dialogues", HOUR)
    clean_as_json(capsys, "--yes")
    assert (treasure / "adapter.safetensors").exists()
    assert (cache / "dialogues" / "link").is_symlink()
    assert not (cache / "dialogues" / "aaa").exists()


def test_deletes_old_checkpoints_of_finished_runs_only(finished_run, capsys):
    unfinished = finished_run.with_name("open-1")
    shutil.copytree(finished_run, unfinished)
    (unfinished / "result.json").unlink()
    set_age(finished_run.parent, HOUR)
    others = {name for name in list_files(finished_run) if "checkpoint" not in name}
    kinds, _ = clean_as_json(capsys, "--yes", "--only", "checkpoints")
    assert {path.name for path in (finished_run / "checkpoints").iterdir()} == {"checkpoint-6", "committed"}
    assert find_newest_checkpoint(finished_run / "checkpoints")[0].step == 6
    assert others <= list_files(finished_run)
    assert len([*(unfinished / "checkpoints").glob("checkpoint-*")]) == 3
    assert {entry["kept_because"] for entry in kinds["checkpoints"]["entries"]} == {None, "the run is not finished"}


def test_keeps_older_checkpoints_if_the_newest_is_damaged(finished_run, capsys):
    (finished_run / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors").write_bytes(b"")
    _, answer = clean_as_json(capsys, "--yes", "--only", "checkpoints", code=10)
    assert "damaged" in answer["stayed"][0]["reason"]
    assert len([*(finished_run / "checkpoints").glob("checkpoint-*")]) == 3


def test_leaves_a_run_in_use_and_a_run_with_links(finished_run, capsys):
    linked = finished_run.with_name("linked-1")
    shutil.copytree(finished_run, linked)
    (linked / "checkpoints" / "checkpoint-9").symlink_to(finished_run / "adapter")
    finished_run.with_name("far-1").symlink_to(finished_run)
    with lock_run_folder(finished_run):
        kinds, _ = clean_as_json(capsys, "--yes", "--only", "checkpoints")
    reasons = {Path(entry["path"]).parents[1].name: entry["kept_because"] for entry in kinds["checkpoints"]["entries"]}
    assert reasons["good-1"] == "in use"
    assert "symbolic link" in reasons["linked-1"]
    assert "far-1" not in reasons
    assert (finished_run / "checkpoints" / "checkpoint-2").exists()


def test_the_table_lists_every_folder_of_the_cache():
    code = "".join(path.read_text() for path in Path(lora_chat.__file__).parent.rglob("*.py"))
    used = set(re.findall(r'cache_dir\("([\w-]+)"', code)) | {"digests.json"}
    assert used <= {kind.folder().name for kind in CACHE_KINDS}
