"""Another user cannot redirect writes in a folder that every user can write to."""

import os
import shutil
import stat
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_chat.config.load import read_recipe
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.runs.create_run import create_run_folder
from lora_chat.system import shared_folders
from lora_chat.system.atomic_write import atomic_folder, atomic_output_file, make_parents
from lora_chat.system.shared_folders import check_run_location, is_open_to_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and POSIX users")
OTHER = 4242
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root has a second user")


@contextmanager
def another_user():
    """Act as another user who shares no group with this one."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(OTHER)
    os.seteuid(OTHER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def ground(tmp_path):
    """Return a folder `shared` with mode 0777 and a private folder that must remain unchanged."""
    place = Path("/tmp") / f"lora-chat-test-{os.getpid()}"  # pytest's own folders are closed to others
    shutil.rmtree(place, ignore_errors=True)
    (place / "mine").mkdir(parents=True)
    (place / "mine" / "file").write_text("mine")
    (place / "shared").mkdir()
    (place / "shared").chmod(0o777)
    place.chmod(0o755)
    yield place
    shutil.rmtree(place, ignore_errors=True)


def temporary(shared):
    return next(path for path in shared.iterdir() if path.name.startswith(".to-"))


def move_and_link(shared, mine):
    """Move the temporary folder away and put a link to the private folder in its place."""
    found = temporary(shared)
    found.rename(shared / "moved")
    found.mkdir()
    (found / "to").symlink_to(mine)


def move_and_link_whole(shared, mine):
    found = temporary(shared)
    found.rename(shared / "moved")
    found.symlink_to(mine)


def move_and_copy(shared, mine):
    found = temporary(shared)
    found.rename(shared / "moved")
    (found / "to").mkdir(parents=True)
    (found / "to" / "file").write_text("theirs")


SWAPS = [move_and_link, move_and_link_whole, move_and_copy]


def check_untouched(ground):
    assert [path.name for path in (ground / "mine").iterdir()] == ["file"]
    assert (ground / "mine" / "file").read_text() == "mine"
    assert stat.S_IMODE((ground / "mine").stat().st_mode) == 0o755


@as_root
@pytest.mark.parametrize("swap", SWAPS)
def test_swapped_temporary_folder_has_no_effect(ground, swap):
    shared = ground / "shared"
    with pytest.raises(IntegrityError, match="Somebody replaced"), atomic_folder(shared / "to", "it") as inside:
        with another_user():
            swap(shared, ground / "mine")
        (inside / "file").write_text("ours")
        assert (shared / "moved" / "to" / "file").read_text() == "ours"
    check_untouched(ground)
    assert not (shared / "to").exists()
    assert not (shared / "moved" / "to").exists()


@as_root
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_swapped_parent_has_no_effect(ground, depth):
    parent = make_folder(ground / "shared" / "/".join("abc"[: depth + 1]))
    with atomic_folder(parent / "to", "it") as inside:
        with another_user():
            first = ground / "shared" / "a"
            first.rename(ground / "shared" / "moved")
            first.symlink_to(ground / "mine")
        (inside / "file").write_text("ours")
    check_untouched(ground)
    assert next((ground / "shared" / "moved").rglob("to/file")).read_text() == "ours"


def make_folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


@as_root
@pytest.mark.parametrize("kind", ["folder", "link", "dangling", "fifo", "file"])
@pytest.mark.parametrize("sticky", [False, True])
def test_planted_file_at_the_final_name_is_replaced_or_refused(ground, kind, sticky):
    shared = ground / "shared"
    shared.chmod(0o1777 if sticky else 0o777)
    to = shared / "to"
    with another_user():
        if kind == "folder":
            to.mkdir()
            (to / "file").write_text("theirs")
        elif kind == "fifo":
            os.mkfifo(to)
        elif kind == "file":
            to.write_text("theirs")
            to.chmod(0o444)
        else:
            to.symlink_to(ground / ("mine" if kind == "link" else "none"))
    with atomic_folder(to, "it") as inside:
        (inside / "file").write_text("ours")
    assert (to / "file").read_text() == "ours"
    assert to.lstat().st_uid == 0
    assert [path.name for path in shared.iterdir()] == ["to"]
    check_untouched(ground)
    assert not (ground / "none").exists()


@as_root
def test_a_folder_planted_at_the_temporary_name_is_refused(ground, monkeypatch):
    made = shared_folders.pinned_new_folder

    def late(folder):
        if folder.name.startswith(".to-"):
            folder.rename(folder.with_name("moved"))
            with another_user():
                (ground / "shared" / folder.name).mkdir()
        return made(folder)

    monkeypatch.setattr("lora_chat.system.atomic_write.pinned_new_folder", late)
    with (
        pytest.raises(IntegrityError, match="while it was being created"),
        atomic_folder(ground / "shared" / "to", "it"),
    ):
        pytest.fail("it was used")


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_shared_folder_without_attack_is_written_normally(ground, umask):
    before = os.umask(umask)
    try:
        with atomic_folder(ground / "shared" / "to", "it", shared=True) as inside:
            assert "/proc/" in str(inside)
            (inside / "deep").mkdir()
            (inside / "deep" / "file").write_text("ours")
        with atomic_output_file(ground / "shared" / "one", "it") as file:
            file.write(b"ours")
    finally:
        os.umask(before)
    assert sorted(path.name for path in (ground / "shared").iterdir()) == ["one", "to"]
    assert (ground / "shared" / "to" / "deep" / "file").read_text() == "ours"
    assert stat.S_IMODE((ground / "shared" / "to").stat().st_mode) == 0o777 & ~umask


def test_a_child_process_can_use_the_pinned_path(ground):
    with atomic_folder(ground / "shared" / "to", "it") as inside:
        child = os.fork()
        if not child:
            (inside / "file").write_text("child")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert (ground / "shared" / "to" / "file").read_text() == "child"


def test_created_parents_deny_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        make_parents(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert not is_open_to_all(tmp_path / "a") and not is_open_to_all(tmp_path / "a" / "b")
    assert not (tmp_path / "a" / "b" / "c").exists()


@pytest.mark.parametrize(
    ("mode", "owner", "open_to_all"),
    [(0o755, 0, False), (0o775, 0, False), (0o1777, 0, False), (0o777, 0, True), (0o1777, OTHER, True)],
)
def test_detects_folders_that_are_open_to_all(tmp_path, mode, owner, open_to_all):
    if os.geteuid() != 0 and owner == OTHER:
        pytest.skip("only root gives folders away")
    if owner:
        os.chown(tmp_path, owner, owner)
    tmp_path.chmod(mode)
    assert is_open_to_all(tmp_path) == open_to_all


def test_a_run_is_not_begun_where_any_user_can_replace_its_folder(ground):
    recipe = read_recipe("recipes/smoke.yaml", [f"output.directory={ground / 'shared'}"])
    with pytest.raises(UsageError, match=f"chmod \\+t {ground / 'shared'}"):
        create_run_folder(recipe, None, lambda run: pytest.fail("it was begun"))
    assert not list((ground / "shared").iterdir())
    (ground / "shared").chmod(0o1777)
    run = make_folder(ground / "shared" / "run-1")
    run.chmod(0o700)
    check_run_location(run)


def test_accepts_file_systems_without_modes(ground):
    run = make_folder(ground / "shared" / "run-1")
    run.chmod(0o777)
    check_run_location(run)
