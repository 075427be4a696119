"""What is written is there whole or not at all, also where the system cannot do everything."""

import errno
import fcntl
import os
import stat

import pytest

from lora_chat import locking, writing
from lora_chat.errors import DiskError, InUseError
from lora_chat.locking import locked
from lora_chat.writing import folder_written_whole, sync, write_text_whole


def replace(to, text):
    with folder_written_whole(to, "it") as folder:
        (folder / "file").write_text(text)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_and_nothing_is_left_beside(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    for text in ("old", "new"):
        replace(tmp_path / "to", text)
        assert (tmp_path / "to" / "file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["to"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux exchanges folders in one step")
def test_files_are_as_readable_as_the_folder(tmp_path):
    with folder_written_whole(tmp_path / "thing", "the thing") as inside:
        (inside / "private").touch(mode=0o600)
    assert oct((tmp_path / "thing" / "private").stat().st_mode & 0o777) == oct(
        (tmp_path / "thing").stat().st_mode & 0o666
    )


def test_a_folder_that_is_replaced_is_never_missing(tmp_path, monkeypatch):
    replace(tmp_path / "to", "old")
    stock, seen = writing.shutil.rmtree, []

    def rmtree(path, **kwargs):
        seen.append(((tmp_path / "to" / "file").read_text(), next(path.rglob("file")).read_text()))
        stock(path, **kwargs)

    monkeypatch.setattr(writing.shutil, "rmtree", rmtree)
    monkeypatch.setattr(writing.Path, "rename", lambda *_: pytest.fail("two steps"))
    replace(tmp_path / "to", "new")
    assert seen == [("new", "old")]


def test_a_block_that_fails_leaves_the_old_one(tmp_path):
    replace(tmp_path / "to", "old")
    with pytest.raises(ZeroDivisionError), folder_written_whole(tmp_path / "to", "it") as folder:
        (folder / "file").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "to" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def fail_with(number, folders):
    stock = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode) == folders:
            raise OSError(number, "fsync")
        stock(handle)

    return fsync


def test_a_file_system_that_cannot_sync_folders_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_with(errno.EINVAL, folders=True))
    write_text_whole(tmp_path / "file", "text", "it")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize(("number", "folders"), [(errno.EIO, True), (errno.EIO, False)])
def test_a_sync_that_fails_is_a_failing_disk(tmp_path, monkeypatch, number, folders):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", fail_with(number, folders))
    with pytest.raises(OSError, match="fsync"):
        sync(tmp_path if folders else tmp_path / "file")
    with pytest.raises(DiskError, match="could not write it"):
        write_text_whole(tmp_path / "file", "new", "it")


def test_one_at_a_time(tmp_path, monkeypatch):
    with locked(tmp_path):
        with pytest.raises(InUseError), locked(tmp_path):
            pass
        with pytest.raises(InUseError), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_enough(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert (tmp_path / locking._NAME).exists()
