"""A checkpoint is used only if every byte of it is unchanged."""

import random
import shutil

import pytest

from lora_chat.runs.checkpoints import (
    MANIFEST,
    DamagedCheckpointError,
    commit_checkpoint,
    find_newest_checkpoint,
    move_damaged_aside,
    prune_checkpoints,
    verify_checkpoint,
)

IDENTITY = {"training.seed": 0, "data.rows": "abc"}


def write(parent, step):
    folder = parent / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    draw = random.Random(step)
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "inner/trainer_state.json"):
        (folder / name).write_bytes(draw.randbytes(300))
    return folder


def test_committed_checkpoint_verifies(tmp_path):
    folder = write(tmp_path, 7)
    with pytest.raises(DamagedCheckpointError, match="not finished"):
        verify_checkpoint(folder)
    commit_checkpoint(folder, IDENTITY)
    found = verify_checkpoint(folder)
    assert (found.step, found.identity) == (7, IDENTITY)


def damages(folder, count, seed):
    """Return functions that damage one file of a checkpoint each."""
    draw = random.Random(seed)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        name = files[number % len(files)]
        kind = ["missing", "empty", "cut", "zeroed", "bit", "longer", "foreign"][number // len(files) % 7]
        yield name, kind, draw


def damage(path, kind, draw):
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
        return
    if kind == "foreign":
        path.with_name(path.name + ".more").write_bytes(b"x")
        return
    if kind == "bit":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "longer":
        content += b"\0"
    elif kind == "zeroed":
        content = bytearray(len(content))
    else:
        content = content[: 0 if kind == "empty" else draw.randrange(len(content))]
    path.write_bytes(content)


def test_damage_is_found_and_the_previous_checkpoint_is_used(tmp_path):
    for step in (3, 9):
        commit_checkpoint(write(tmp_path, step), IDENTITY)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "checkpoint-9", whole)
    folder = tmp_path / "checkpoint-9"
    for name, kind, draw in damages(whole, 350, seed=1):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        damage(folder / name, kind, draw)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        newest, aside = find_newest_checkpoint(tmp_path)
        if name.name == MANIFEST and after.keys() == before.keys() and _means_the_same(after, folder):
            assert newest.step == 9  # only a space was changed
        else:
            assert newest.step == 3, (name, kind)
            assert [one.folder.name for one in aside] == ["checkpoint-9"]
            assert aside[0].reason
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)


def _means_the_same(after, folder):
    import json

    try:
        one = json.loads(after[folder / MANIFEST])
        other = json.loads((folder.parent / "whole" / MANIFEST).read_text())
    except ValueError:
        return False
    return one == other


def test_no_checkpoint_is_found_if_all_are_damaged(tmp_path):
    for step in (3, 9):
        commit_checkpoint(write(tmp_path, step), IDENTITY)
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").unlink()
    newest, aside = find_newest_checkpoint(tmp_path)
    assert newest is None
    assert len(aside) == 2


def test_older_checkpoints_are_deleted_only_after_newer_commits(tmp_path):
    for step in (1, 2, 10):
        commit_checkpoint(write(tmp_path, step), IDENTITY)
    write(tmp_path, 0)  # half deleted by a process that was killed
    write(tmp_path, 11)  # not finished: counts for nothing
    prune_checkpoints(tmp_path, 2)
    found = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert found == ["checkpoint-10", "checkpoint-11", "checkpoint-2"]
    newest, aside = find_newest_checkpoint(tmp_path)
    assert newest.step == 10
    move_damaged_aside(aside)
    assert not (tmp_path / "checkpoint-11").exists()
    commit_checkpoint(write(tmp_path, 11), IDENTITY)
    assert find_newest_checkpoint(tmp_path)[0].step == 11
