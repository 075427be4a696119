"""A watched folder: whole parcels answer, changed ones are swapped or end, removed ones are unloaded."""

import os

import pytest

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.pipeline.admitted_model import AdmittedModel
from lora_chat.serving import adapter_folder
from lora_chat.serving.adapter_folder import AdapterFolder


class FakeModels:
    """Models in memory that admit every file which begins with `good`."""

    def __init__(self):
        self.models, self.refused, self.dismissed, self.calls = {}, {}, [], []

    def find(self, name):
        return self.models.get(name)

    def admit_stranger(self, path, *, replaces=False):
        name = os.path.basename(path).removesuffix(".lorachat")  # noqa: PTH119
        self.calls.append((name, replaces))
        with open(path, "rb") as file:  # noqa: PTH123
            content = file.read()
        if not content.startswith(b"good") or (name in self.models and not replaces):
            self.refused[name] = "refused"
            raise IntegrityError("refused")
        self.refused.pop(name, None)
        self.models[name] = AdmittedModel(name, content.decode(), None, (), None, None, (), path, 0)
        return self.models[name]

    def dismiss(self, name):
        if name not in self.models:
            raise UsageError("none")
        self.dismissed.append(self.models.pop(name).adapter)

    def forget_refusal(self, name):
        self.refused.pop(name, None)


@pytest.fixture
def models():
    return FakeModels()


@pytest.fixture
def watcher(tmp_path, models):
    return AdapterFolder(tmp_path, models)


def write(folder, content, name="kiln.lorachat"):
    """Write a file under a temporary name and rename it."""
    (folder / ".part").write_bytes(content)
    (folder / ".part").rename(folder / name)


def look(watcher, times=2):
    for _ in range(times):
        watcher.look()


def test_admits_a_file_that_did_not_change_between_two_looks(watcher, models, tmp_path):
    write(tmp_path, b"good 1")
    look(watcher, 1)
    assert models.calls == []
    look(watcher, 3)
    assert models.calls == [("kiln", False)]
    assert models.models["kiln"].adapter == "good 1"


def test_waits_for_a_file_that_grows(watcher, models, tmp_path):
    path = tmp_path / "kiln.lorachat"
    for content in (b"g", b"go", b"good", b"good 1"):
        path.write_bytes(content)
        look(watcher, 1)
        assert models.calls == []
    look(watcher, 1)
    assert models.models["kiln"].adapter == "good 1"


def test_tries_a_broken_file_again_only_when_it_changes(watcher, models, tmp_path):
    write(tmp_path, b"half")
    look(watcher, 5)
    assert models.calls == [("kiln", False)]
    assert "kiln" in models.refused
    write(tmp_path, b"good 1")
    look(watcher)
    assert models.models["kiln"].adapter == "good 1"
    assert models.refused == {}


def test_swaps_a_changed_file_only_after_the_new_one_passed(watcher, models, tmp_path):
    write(tmp_path, b"good 1")
    look(watcher)
    write(tmp_path, b"good 2")
    look(watcher, 1)
    assert models.models["kiln"].adapter == "good 1"
    look(watcher, 1)
    assert models.models["kiln"].adapter == "good 2"
    assert models.calls[-1] == ("kiln", True)


def test_ends_a_model_whose_file_has_a_refused_content_now(watcher, models, tmp_path):
    write(tmp_path, b"good 1")
    look(watcher)
    write(tmp_path, b"other")
    look(watcher)
    assert (models.models, models.dismissed) == ({}, ["good 1"])
    assert "kiln" in models.refused
    write(tmp_path, b"good 3")
    look(watcher)
    assert models.models["kiln"].adapter == "good 3"


def test_unloads_removed_files_and_forgets_refused_ones(watcher, models, tmp_path):
    write(tmp_path, b"good 1")
    write(tmp_path, b"bad", "bad.lorachat")
    look(watcher)
    assert set(models.refused) == {"bad"}
    for path in tmp_path.iterdir():
        path.unlink()
    look(watcher, 1)
    assert (models.models, models.refused, models.dismissed) == ({}, {}, ["good 1"])


def test_never_ends_a_model_of_another_origin(watcher, models, tmp_path):
    named = models.models["kiln"] = AdmittedModel("kiln", "named", None, (), None, None, (), "kiln", 0)
    write(tmp_path, b"good 1")
    look(watcher)
    assert models.models["kiln"] is named
    (tmp_path / "kiln.lorachat").unlink()
    look(watcher)
    assert models.models["kiln"] is named


def test_a_model_that_the_owner_unloaded_is_not_an_error(watcher, models, tmp_path):
    write(tmp_path, b"good 1")
    look(watcher)
    models.dismiss("kiln")
    look(watcher)
    assert models.models == {}
    (tmp_path / "kiln.lorachat").unlink()
    look(watcher)


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "empty", "dot", "suffix", "sparse"])
def test_ignores_everything_but_regular_parcels(watcher, models, tmp_path, kind):
    path = tmp_path / "kiln.lorachat"
    outside = tmp_path / "outside"
    outside.write_bytes(b"good 1")
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "dot":
        (tmp_path / ".kiln.lorachat").write_bytes(b"good 1")
    elif kind == "suffix":
        (tmp_path / "kiln.lorachat.part").write_bytes(b"good 1")
    else:
        with path.open("wb") as file:
            file.truncate(2**33)
    look(watcher, 3)
    assert models.calls == []


def test_bounds_the_number_of_parcels_and_continues_without_the_folder(
    watcher, models, tmp_path, monkeypatch, messages
):
    monkeypatch.setattr(adapter_folder, "MAX_FILES", 2)
    for number in range(4):
        write(tmp_path, b"good", f"k{number}.lorachat")
    look(watcher, 4)
    assert len(models.models) == 2
    assert sum("more than 2 parcels" in text for text in messages) == 1
    tmp_path.rename(tmp_path.with_name("away"))
    look(watcher)
    assert len(models.models) == 2
    tmp_path.with_name("away").rename(tmp_path)


def test_refuses_a_folder_that_cannot_be_listed(tmp_path, models):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UsageError, match="--adapters"):
            AdapterFolder(path, models)


def test_the_thread_survives_an_unexpected_error(watcher, models, tmp_path, monkeypatch, messages):
    monkeypatch.setattr(adapter_folder, "POLL_SECONDS", 0.01)
    models.admit_stranger = lambda *args, **options: 1 / 0
    write(tmp_path, b"good 1")
    watcher.start()
    for _ in range(200):
        if any("could not be looked at" in text for text in messages):
            break
        watcher._stopped.wait(0.01)
    assert watcher._thread.is_alive()
    watcher.close()
    watcher._thread.join(5)
    assert not watcher._thread.is_alive()
    assert any("could not be looked at" in text for text in messages)
