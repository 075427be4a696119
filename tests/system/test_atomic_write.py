"""Writes are atomic, even on systems with missing features."""

import errno
import fcntl
import os
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_chat.errors import DiskError, IntegrityError, InUseError, UsageError
from lora_chat.runs import lock as lock_module
from lora_chat.runs.lock import lock_run_folder
from lora_chat.system import atomic_write
from lora_chat.system.atomic_write import (
    atomic_folder,
    atomic_output_file,
    fsync_path,
    is_temporary_file,
    open_to_append,
    write_text_atomically,
)
from lora_chat.system.regular_files import open_regular_file


def replace(to, text):
    with atomic_folder(to, "it") as folder:
        (folder / "file").write_text(text)


@pytest.mark.parametrize("exchanges", [True, False])
def test_folder_is_replaced_without_leftovers(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(atomic_write, "_exchange_names", lambda *_: False)
    for text in ("old", "new"):
        replace(tmp_path / "to", text)
        assert (tmp_path / "to" / "file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["to"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux exchanges folders in one step")
def test_files_get_the_permissions_of_the_folder(tmp_path):
    with atomic_folder(tmp_path / "thing", "the thing", shared=True) as inside:
        (inside / "private").touch(mode=0o600)
    assert oct((tmp_path / "thing" / "private").stat().st_mode & 0o777) == oct(
        (tmp_path / "thing").stat().st_mode & 0o666
    )


def test_a_folder_that_is_replaced_is_never_missing(tmp_path, monkeypatch):
    replace(tmp_path / "to", "old")
    stock, seen = atomic_write.shutil.rmtree, []

    def rmtree(path, **kwargs):
        seen.append(((tmp_path / "to" / "file").read_text(), next(path.rglob("file")).read_text()))
        stock(path, **kwargs)

    monkeypatch.setattr(atomic_write.shutil, "rmtree", rmtree)
    monkeypatch.setattr(atomic_write.Path, "rename", lambda *_: pytest.fail("two steps"))
    replace(tmp_path / "to", "new")
    assert seen == [("new", "old")]


def test_failed_block_keeps_the_old_folder(tmp_path):
    replace(tmp_path / "to", "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "to", "it") as folder:
        (folder / "file").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "to" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


@contextmanager
def umask(bits):
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def mode(path):
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.parametrize(("shared", "file", "folder"), [(False, "0o600", "0o700"), (True, "0o640", "0o750")])
def test_modes_are_private_until_the_rename(tmp_path, shared, file, folder):
    with umask(0o027):
        with atomic_output_file(tmp_path / "file", "it", shared=shared) as open_file:
            assert mode(Path(open_file.name)) == "0o600"
        with atomic_folder(tmp_path / "to", "it", shared=shared) as inside:
            assert mode(inside.parent) == "0o700"
            (inside / "deep").mkdir()
            (inside / "deep" / "file").write_text("text")
        assert mode(tmp_path / "file") == mode(tmp_path / "to" / "deep" / "file") == file
        assert mode(tmp_path / "to") == mode(tmp_path / "to" / "deep") == folder
        with open_to_append(tmp_path / "log") as log:
            log.write("line\n")
        assert mode(tmp_path / "log") == "0o600"


def test_temporary_names_differ_each_time_and_are_recognised(tmp_path):
    names = set()
    for _ in range(2):
        with atomic_output_file(tmp_path / ("n" * 250), "it") as file:
            names.add(file.name)
            assert is_temporary_file(Path(file.name))
    assert len(names) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 250]


LINKS = ["file", "folder", "dangling", "loop"]


def plant(place, kind, outside):
    """Plant a link to a file outside. Return a function that checks that the file is unchanged."""
    if kind == "file":
        outside.write_text("mine")
    elif kind == "folder":
        outside.mkdir()
        (outside / "kept").write_text("mine")
    place.symlink_to(place if kind == "loop" else outside)

    def untouched():
        if kind == "folder":
            return [p.name for p in outside.iterdir()] == ["kept"] and (outside / "kept").read_text() == "mine"
        return outside.read_text() == "mine" if kind == "file" else not outside.exists()

    return untouched


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path, kind):
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    untouched = plant(home / "to", kind, outside)
    write_text_atomically(home / "to", "new", "it")
    assert not (home / "to").is_symlink()
    assert (home / "to").read_text() == "new"
    assert untouched()


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("kind", LINKS)
def test_a_folder_replaces_a_link_at_its_target(tmp_path, monkeypatch, kind, exchanges):
    if not exchanges:
        monkeypatch.setattr(atomic_write, "_exchange_names", lambda *_: False)
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    untouched = plant(home / "to", kind, outside)
    replace(home / "to", "new")
    assert not (home / "to").is_symlink()
    assert (home / "to" / "file").read_text() == "new"
    assert untouched()
    assert [path.name for path in home.iterdir()] == ["to"]


@pytest.mark.parametrize("kind", LINKS)
def test_append_refuses_a_link(tmp_path, kind):
    untouched = plant(tmp_path / "log", kind, tmp_path / "outside")
    with pytest.raises(IntegrityError, match="is a symbolic link"):
        open_to_append(tmp_path / "log")
    assert untouched()


def test_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with pytest.raises(IntegrityError, match="regular file"):
            open_regular_file(tmp_path / "fifo", flags)


def test_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_write.secrets, "token_hex", lambda _: "guessed")
    untouched = plant(tmp_path / ".to.guessed.part", "file", tmp_path / "outside")
    with pytest.raises(UsageError, match="Cannot write"):
        write_text_atomically(tmp_path / "to", "new", "it")
    assert untouched()
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("linked", [True, False])
def test_refuses_a_temporary_file_that_was_exchanged(tmp_path, linked):
    """A user who can rename files in the folder (without the sticky bit) cannot put a file into the result."""
    (tmp_path / "theirs").write_text("theirs")
    with pytest.raises(IntegrityError, match="replaced"), atomic_output_file(tmp_path / "to", "it") as file:
        Path(file.name).unlink()
        if linked:
            Path(file.name).symlink_to(tmp_path / "theirs")
        else:
            Path(file.name).write_text("theirs")
    assert not (tmp_path / "to").exists()
    with pytest.raises(IntegrityError, match="replaced"), atomic_folder(tmp_path / "to", "it") as inside:
        inside.parent.rename(tmp_path / "away")
        inside.mkdir(parents=True)
        (inside / "file").write_text("theirs")
    assert not (tmp_path / "to").exists()
    assert (tmp_path / "theirs").read_text() == "theirs"


def fail_with(number, folders):
    stock = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode) == folders:
            raise OSError(number, "fsync")
        stock(handle)

    return fsync


def test_works_on_file_systems_that_cannot_sync_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_with(errno.EINVAL, folders=True))
    write_text_atomically(tmp_path / "file", "text", "it")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize(("number", "folders"), [(errno.EIO, True), (errno.EIO, False)])
def test_failed_sync_raises_disk_error(tmp_path, monkeypatch, number, folders):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", fail_with(number, folders))
    with pytest.raises(OSError, match="fsync"):
        fsync_path(tmp_path if folders else tmp_path / "file")
    with pytest.raises(DiskError, match="could not write it"):
        write_text_atomically(tmp_path / "file", "new", "it")


def test_lock_admits_one_process_at_a_time(tmp_path, monkeypatch):
    with lock_run_folder(tmp_path):
        with pytest.raises(InUseError), lock_run_folder(tmp_path):
            pass
        with pytest.raises(InUseError), lock_run_folder(tmp_path):
            pass
    with lock_run_folder(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["dangling", "link", "fifo", "folder"])
def test_refuses_lock_that_is_not_a_regular_file(tmp_path, kind):
    outside = tmp_path / "outside"
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / ".lock"
    if kind == "link":
        outside.write_text("mine")
    plant = {"dangling": lambda: lock.symlink_to(outside), "link": lambda: lock.symlink_to(outside)}
    plant |= {"fifo": lambda: os.mkfifo(lock), "folder": lock.mkdir}
    plant[kind]()
    with pytest.raises(IntegrityError, match=r"\.lock is a"), lock_run_folder(tmp_path / "run"):
        pass
    assert outside.exists() == (kind == "link")


def test_works_on_file_systems_without_locks(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_run_folder(tmp_path):
        assert (tmp_path / lock_module._LOCK_NAME).exists()
