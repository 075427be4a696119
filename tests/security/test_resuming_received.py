"""Received runs and checkpoints are resumed only with consent; own runs never need it, wherever they stopped."""

import hashlib
import json
import shutil

import pytest

from lora_chat.cli import main
from lora_chat.errors import ConsentError
from lora_chat.pipeline import saved_training
from lora_chat.pipeline.resume import ResumeRequest, find_resume_point
from lora_chat.runs.checkpoints import find_newest_checkpoint
from lora_chat.runs.origin import (
    ADAPTER_FILES,
    PREPARED_FILES,
    announce_writes,
    find_foreign_reason,
    sign_run,
    sign_written_files,
    start_run_signature,
)
from lora_chat.runs.run_folder import RunFolder, is_run_folder
from lora_chat.system import atomic_write

pytestmark = pytest.mark.slow

ROWS = [
    {"messages": [{"role": "user", "content": f"number {n}?"}, {"role": "assistant", "content": f"it is {n}"}]}
    for n in range(6)
]


class Watch:
    """A watcher that checks after every rename whether the run could be resumed without consent."""

    def __init__(self, monkeypatch):
        self.asked, self.found, self.stock = 0, set(), atomic_write.fsync_path
        monkeypatch.setattr(atomic_write, "fsync_path", self.sync)

    def sync(self, path):
        self.stock(path)
        run = path if path.name == "r-1" else path.parent
        if is_run_folder(run):
            self.asked += 1
            self.found.add(find_foreign_reason(RunFolder(run), resuming=True))


@pytest.fixture(scope="module")
def cut(cache_home, tmp_path_factory):
    """Return a run that was interrupted while its adapter was saved, with its recipe beside it."""
    place = tmp_path_factory.mktemp("runs")
    (place / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (place / "r.yaml").write_text(
        "base: {name: tiny-random}\nquantization: {mode: none}\ndata: {train: talk.jsonl}\n"
        "training: {max_steps: 2, effective_batch_size: 2, memory: unlimited}\nadapter: {rank: 2}\n"
        f"checkpoint: {{every_steps: 1}}\nevaluation: {{samples: 0}}\noutput: {{directory: {place}}}\n"
    )

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        patch.setattr(saved_training, "save_adapter", stop)
        assert main(["sft", str(place / "r.yaml")]) == 130
    assert watch.asked > 5 and watch.found == {None}
    return place / "r-1"


@pytest.fixture
def run(cut, tmp_path):
    return shutil.copytree(cut, tmp_path / "r-1")


@pytest.fixture
def call(capsys, cut):
    def call(*words):
        code = main(["sft", str(cut.parent / "r.yaml"), *map(str, words)])
        return code, capsys.readouterr().err

    return call


def state_of(run):
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def edit(path, **new):
    path.write_text(json.dumps(json.loads(path.read_text()) | new))


def plant(run):
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")


RECEIVED = {
    "unsigned": lambda run: (run / "origin.json").unlink(),
    "signed by another": lambda run: edit(run / "origin.json", mac="00" * 32),
    "everything open": lambda run: edit(run / "origin.json", open=[*PREPARED_FILES, *ADAPTER_FILES]),
    "another plan": lambda run: edit(run / "plan.json", open_settings=["optimizer"]),
    "another recipe": lambda run: (run / "recipe.yaml").write_text(""),
    "another identity": lambda run: (run / "identity.json").unlink(),
    "other dialogues": lambda run: (run / "validation.jsonl").write_text(""),
    "questions more": lambda run: (run / "questions.jsonl").write_text(""),
}


@pytest.mark.parametrize("name", RECEIVED)
def test_resuming_a_received_run_needs_consent(name, run, call):
    RECEIVED[name](run)
    before = state_of(run)
    code, said = call("--resume", run)
    assert code == 7 and "treated as received" in said
    assert said.rstrip().endswith(f"--resume {run} --adopt")
    assert state_of(run) == before


def test_newest_run_may_be_received(cut, call, tmp_path):
    planted = cut.with_name("r-999")
    shutil.copytree(cut, planted)
    try:
        (planted / "origin.json").unlink()
        code, said = call("--resume")
        assert code == 7 and "r-999 is treated as received" in said and said.rstrip().endswith("--resume --adopt")
    finally:
        shutil.rmtree(planted)


def test_finished_received_run_is_not_trusted(run, call):
    plant(run)
    (run / "result.json").write_text("{}")
    code, said = call("--resume", run)
    assert code == 7 and "treated as received" in said and "there is nothing to do" not in said


def test_adopt_requires_resume(call):
    code, said = call("--adopt")
    assert code == 2 and "--adopt needs --resume" in said


def test_own_run_resumes_without_and_received_run_with_consent(run, call, monkeypatch, tmp_path):
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))  # another user
    assert call("--resume", run)[0] == 7
    watch = Watch(monkeypatch)
    code, said = call("--resume", run, "--adopt")
    assert code == 0, said
    assert watch.asked > 5 and watch.found == {None}
    assert find_foreign_reason(RunFolder(run)) is None
    newest, damaged = find_newest_checkpoint(run / "checkpoints")
    assert newest.signed_by_user and not damaged
    code, said = call("--resume", run)
    assert code == 0 and "finished" in said


def forge(folder, *, mac=None, **new):
    """Forge a checkpoint like an attacker who knows the format but not the key."""
    manifest = json.loads((folder / "manifest.json").read_text()) | new
    kept = {"mac": manifest.pop("mac", None), "none": None, None: "00" * 32}.get(mac, mac)
    manifest.pop("sha256")
    for entry in manifest["files"]:
        raw = (folder / entry["path"]).read_bytes()
        entry |= {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    if kept is not None:
        manifest["mac"] = kept
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def other_weights(folder):
    path = folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def a_step_further(folder):
    forge(folder.rename(folder.with_name("checkpoint-9")), mac="mac", step=9)


FORGED = {
    "weights, its old mark": lambda folder: (other_weights(folder), forge(folder, mac="mac")),
    "weights, a mark of another key": lambda folder: (other_weights(folder), forge(folder)),
    "weights, no mark": lambda folder: (other_weights(folder), forge(folder, mac="none")),
    "no mark": lambda folder: forge(folder, mac="none"),
    "a number as mark": lambda folder: forge(folder, mac=7),
    "a mark that is not ASCII": lambda folder: forge(folder, mac="\u00e9" * 64),
    "another step": a_step_further,
    "the mark of the step before": lambda folder: forge(
        folder, mac=json.loads((folder.with_name("checkpoint-1") / "manifest.json").read_text())["mac"]
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_checkpoint_in_an_own_run_needs_consent(name, run):
    FORGED[name](run / "checkpoints" / "checkpoint-2")
    folder = RunFolder(run)
    identity = json.loads(folder.identity.read_text())
    before = state_of(run)
    with pytest.raises(ConsentError) as caught:
        find_resume_point(folder, identity, ResumeRequest(str(run)))
    assert "was written by another user" in str(caught.value) and caught.value.flag == "--adopt"
    assert state_of(run) == before
    found = find_resume_point(folder, identity, ResumeRequest(str(run), adopt=True))
    assert found.signed_by_user
    assert find_resume_point(folder, identity, ResumeRequest(str(run))) == found
    shutil.rmtree(found.folder)
    assert find_resume_point(folder, identity, ResumeRequest(str(run))).step == 1


def test_manifest_is_readable_by_older_versions(run):
    manifest = json.loads((run / "checkpoints" / "checkpoint-2" / "manifest.json").read_text())
    stated = manifest.pop("sha256")
    assert stated == hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def test_run_without_a_key_writes_checkpoints(run, monkeypatch, tmp_path):
    (tmp_path / "lora-chat").write_text("")  # no folder can be made there
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = RunFolder(run)
    identity = json.loads(folder.identity.read_text())
    with pytest.raises(ConsentError):
        find_resume_point(folder, identity, ResumeRequest(str(run)))
    found = find_resume_point(folder, identity, ResumeRequest(str(run), adopt=True))
    assert found.step == 2 and not found.signed_by_user


def test_open_files_are_accepted_only_when_resuming(run):
    folder = RunFolder(run)
    plant(run)
    sign_run(folder)
    announce_writes(folder, ADAPTER_FILES)
    assert find_foreign_reason(folder) is None  # still as it was signed
    (run / "adapter" / "adapter_config.json").write_text("[]")
    assert find_foreign_reason(folder) is not None and find_foreign_reason(folder, resuming=True) is None
    announce_writes(folder, PREPARED_FILES)
    sign_written_files(folder, PREPARED_FILES)  # blesses nothing that was not written
    assert find_foreign_reason(folder) is not None and find_foreign_reason(folder, resuming=True) is None
    (run / "plan.json").write_text("{}")
    assert find_foreign_reason(folder, resuming=True) is not None


def test_nothing_is_signed_in_a_run_that_is_not_signed(run):
    folder = RunFolder(run)
    for spoil in (lambda: edit(run / "origin.json", mac="00" * 32), (run / "origin.json").unlink):
        spoil()
        announce_writes(folder, PREPARED_FILES)
        sign_written_files(folder, PREPARED_FILES)
        assert find_foreign_reason(folder, resuming=True) is not None
    start_run_signature(folder)
    assert find_foreign_reason(folder) is not None and find_foreign_reason(folder, resuming=True) is None
