"""Strangers' checkpoints with correct digests: no pickle runs, and nothing else is resumed."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import attach_adapter, write_peft_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.runs.checkpoints import MANIFEST, DamagedCheckpointError, commit_checkpoint, verify_checkpoint
from lora_chat.system.hardware import Hardware
from lora_chat.training.checkpoint_content import check_checkpoint_content

pytestmark = pytest.mark.slow

PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
WEIGHTS, STATE = "adapter_model.safetensors", "trainer_state.json"


class Runs:
    """A pickle that runs a command in a reader without restrictions."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


class Reconstructs(Runs):
    """A pickle that runs a command through a function that NumPy's random state needs."""

    def __reduce__(self):
        from numpy._core.multiarray import _reconstruct

        return _reconstruct, (list, (0,), b"b")


@pytest.fixture(scope="module")
def model(cache_home):
    base = find_base(BaseSection(name="tiny-random"))
    cpu = Hardware("cpu", "test", 0, False, 2)
    return attach_adapter(
        load_base_model(base, plan_precision(QuantizationSection(mode="none"), cpu)), AdapterSection(rank=2)
    )


@pytest.fixture
def folder(tmp_path, model):
    """Return a small checkpoint in the format of training."""
    folder = tmp_path / "checkpoints" / "checkpoint-2"
    folder.mkdir(parents=True)
    write_peft_adapter(model, folder)
    torch.save({"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}, folder / PICKLED[0])
    torch.save({"last_epoch": 2}, folder / PICKLED[1])
    torch.save({"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}, folder / PICKLED[2])
    control = {"args": {"should_save": True}, "attributes": {}}
    state = {"global_step": 2, "log_history": [], "stateful_callbacks": {"TrainerControl": control}}
    (folder / STATE).write_text(json.dumps(state))
    commit_checkpoint(folder, {})
    return folder


def refused(folder, model, *words, has_scaler=False):
    (folder / MANIFEST).unlink()
    whole = commit_checkpoint(folder, {})
    assert verify_checkpoint(folder) == whole  # the digests of a forger fit
    with pytest.raises(IntegrityError) as caught:
        check_checkpoint_content(whole, model, has_scaler=has_scaler)
    assert all(word in str(caught.value) for word in (str(folder), *words)), str(caught.value)


def test_unchanged_checkpoint_is_resumed(folder, model):
    check_checkpoint_content(verify_checkpoint(folder), model)


SCALER = "scaler.pt"


def test_checkpoint_of_fp16_has_the_state_of_the_scaler(folder, model):
    refused(folder, model, "lacks", SCALER, has_scaler=True)
    torch.save(torch.amp.GradScaler("cpu", init_scale=512.0).state_dict(), folder / SCALER)
    (folder / MANIFEST).unlink()
    check_checkpoint_content(commit_checkpoint(folder, {}), model, has_scaler=True)
    refused(folder, model, "contains", SCALER)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.5},
        {"scale": float("inf")},
        {"scale": float("nan")},
        {"scale": 512},
        {"scale": torch.ones(())},
        {"growth_factor": 1e30},
        {"backoff_factor": 1.0},
        {"growth_interval": 1},
        {"_growth_tracker": -1},
        {"_growth_tracker": 2000},
        {"_growth_tracker": True},
        {"more": 1},
    ],
)
def test_refuses_invalid_state_of_the_scaler(folder, model, change):
    torch.save(torch.amp.GradScaler("cpu").state_dict() | change, folder / SCALER)
    refused(folder, model, SCALER, has_scaler=True)


def test_state_of_the_scaler_is_not_unpickled(folder, model, tmp_path):
    mark = tmp_path / "ran"
    for write in (_zipped, _plain, _inside):
        write(Runs(mark), folder / SCALER)
        refused(folder, model, SCALER, has_scaler=True)
    assert not mark.exists()


def _zipped(evil, path):
    torch.save(evil, path)


def _plain(evil, path):
    path.write_bytes(pickle.dumps(evil))


def _inside(evil, path):
    torch.save({"state": {}, "param_groups": [], "python": evil}, path)


@pytest.mark.parametrize("write", [_zipped, _plain, _inside], ids=["torch", "pickle", "inside"])
@pytest.mark.parametrize("kind", [Runs, Reconstructs])
@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_never_runs(folder, model, tmp_path, name, kind, write):
    mark = tmp_path / "ran"
    write(kind(mark), folder / name)
    refused(folder, model, name)
    assert not mark.exists()


@pytest.mark.parametrize("extra", ["training_args.bin", "pytorch_model.bin", "adapter_model.bin", "scaler.pt", "x.py"])
def test_a_file_that_training_does_not_write_is_refused(folder, model, tmp_path, extra):
    mark = tmp_path / "ran"
    (folder / extra).write_bytes(pickle.dumps(Runs(mark)))
    refused(folder, model, extra)
    assert not mark.exists()


@pytest.mark.parametrize("name", [*PICKLED, WEIGHTS, STATE])
def test_a_missing_file_is_named(folder, model, name):
    (folder / name).unlink()
    refused(folder, model, name)


def _compressed(path):
    raw = io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry))
    path.write_bytes(raw.getvalue())


ODD = {
    "compressed": _compressed,
    "a list": lambda path: torch.save([1], path),
    "a tensor of one value, repeated": lambda path: torch.save({"x": torch.zeros(1).expand(10**12)}, path),
    "no number": lambda path: torch.save({"x": torch.tensor([float("nan")])}, path),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", PICKLED[:2])
def test_refuses_invalid_tensors(folder, model, name, odd):
    ODD[odd](folder / name)
    refused(folder, model, name)


@pytest.mark.parametrize(
    "change",
    [
        {"global_step": 10**9},
        {"global_step": -1},
        {"global_step": 2.5},
        {"log_history": "x"},
        {"stateful_callbacks": {}},
        {"stateful_callbacks": {"TrainerControl": {"args": {}, "attributes": {}}, "Other": {}}},
        {"stateful_callbacks": {"TrainerControl": {"args": {"should_save": "x"}, "attributes": {}}}},
        {"stateful_callbacks": {"TrainerControl": {"args": {}, "attributes": {"__class__": "x"}}}},
    ],
    ids=str,
)
def test_another_state_is_refused(folder, model, change):
    state = json.loads((folder / STATE).read_text()) | change
    (folder / STATE).write_text(json.dumps(state))
    refused(folder, model, STATE)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"global_step": NaN}', '{"a": 1, "a": 2}'])
def test_refuses_invalid_state(folder, model, text):
    (folder / STATE).write_text(text)
    (folder / MANIFEST).unlink()
    whole = commit_checkpoint(folder, {})
    with pytest.raises((IntegrityError, DamagedCheckpointError), match=STATE):
        verify_checkpoint(folder)
        check_checkpoint_content(whole, model)


def test_weights_of_the_base_are_not_replaced(folder, model):
    weights = load_file(folder / WEIGHTS)
    name = next(iter(weights))
    for changed in (
        weights | {"base_model.model.model.embed_tokens.weight": torch.zeros(2, 2)},
        {key: value for key, value in weights.items() if key != name},
        weights | {name: torch.full_like(weights[name], float("inf"))},
        weights | {name: torch.zeros(1, 1)},
    ):
        save_file(changed, folder / WEIGHTS)
        refused(folder, model)
