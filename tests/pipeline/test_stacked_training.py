"""A new adapter on the base with its parent merged in: `adapter.stack: merge_first`."""

import json
import shutil

import pytest

from lora_chat.cli import main
from lora_chat.models.adapter_files import WEIGHTS_NAME, read_identity
from lora_chat.pipeline.parent import read_lineage
from lora_chat.runs.run_folder import RunFolder
from lora_chat.sharing.collect import make_base_receipt
from lora_chat.sharing.lineage import check_lineage
from lora_chat.sharing.receipt import BaseReceipt

pytestmark = pytest.mark.slow  # many short trainings

SETTINGS = (
    "base.name=tiny-random",
    "quantization.mode=none",
    "adapter.rank=4",
    "training.max_steps=2",
    "evaluation.samples=0",
)
STACKED = ("adapter.start=runs/smoke-1", "adapter.stack=merge_first", "adapter.rank=2", "training.max_steps=2")


def sft(*settings, resume=()):
    arguments = [part for setting in settings for part in ("--set", setting)]
    return main(["sft", str(sft.recipe), *arguments, *resume])


@pytest.fixture(scope="module")
def runs(cache_home, tmp_path_factory):
    """Return a folder with `runs/smoke-1` and the stacked `runs/stacked-1`."""
    path = tmp_path_factory.mktemp("stacked")
    sft.recipe = path.cwd() / "recipes" / "smoke.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert sft(*SETTINGS) == 0
        assert sft(*SETTINGS, *STACKED, "output.name=stacked", "data.seed=3", "checkpoint.every_steps=1") == 0
    return path / "runs"


def test_child_belongs_to_the_merged_base_only(runs, capsys):
    child = runs / "stacked-1"
    identity, parent = (read_identity(run / "adapter") for run in (child, runs / "smoke-1"))
    assert identity.base == str(child / "merged-base")
    assert identity.weights != parent.weights
    assert identity.tokenizer == parent.tokenizer
    assert json.loads((child / "merged-base" / "proof.json").read_text())
    plan = RunFolder(child).read_plan()
    assert (plan.adapter.rank, plan.base.name) == (2, str(child / "merged-base"))
    capsys.readouterr()
    assert main(["eval", str(child), "--base", "tiny-random"]) == 7
    assert "belongs to another base" in capsys.readouterr().err


def test_lineage_of_the_child_has_the_base_before_the_merge(runs):
    child = RunFolder(runs / "stacked-1")
    lineage = read_lineage(child)
    (entry,) = lineage
    parent = read_identity(runs / "smoke-1" / "adapter")
    assert (entry.how, entry.base, entry.weights) == ("merge_first", "tiny-random", parent.weights)
    base = make_base_receipt(read_identity(child.adapter))
    assert isinstance(base, BaseReceipt)
    assert base.base == "merged-base"
    check_lineage(lineage, base, None)


def test_moved_run_is_evaluated_with_all_generations(runs, tmp_path, capsys):
    child = json.loads((runs / "stacked-1" / "result.json").read_text())
    losses = child["generations"]["child_data"]["validation_loss"]
    assert losses["parent"] == child["validation_loss"]["base"]
    assert len({*losses.values()}) == 3
    parent = json.loads((runs / "smoke-1" / "result.json").read_text())
    on_parent_data = child["generations"]["parent_data"]["validation_loss"]
    assert on_parent_data["base"] == parent["validation_loss"]["base"]
    assert on_parent_data["parent"] == pytest.approx(parent["validation_loss"]["adapted"], abs=0.02)
    shutil.move(shutil.copytree(runs / "stacked-1", tmp_path / "copy"), tmp_path / "moved")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "moved"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generations"] == child["generations"]


def test_interrupted_stacked_run_resumes_to_the_same_bytes(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    child = runs / "stacked-1"
    finished = (child / "adapter" / WEIGHTS_NAME).read_bytes()
    merged = (child / "merged-base" / "model.safetensors").stat().st_mtime_ns
    (child / "result.json").unlink()
    shutil.rmtree(child / "checkpoints" / "checkpoint-2")
    settings = (*SETTINGS, *STACKED, "output.name=stacked", "data.seed=3", "checkpoint.every_steps=1")
    assert sft(*settings, resume=("--resume",)) == 0
    assert (child / "adapter" / WEIGHTS_NAME).read_bytes() == finished
    assert (child / "merged-base" / "model.safetensors").stat().st_mtime_ns == merged


def test_full_disk_is_refused_before_the_merge(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    monkeypatch.setattr("lora_chat.pipeline.merge_parent._OTHER_FILES_BYTES", 2**60)
    capsys.readouterr()
    assert sft(*SETTINGS, *STACKED, "output.name=full") == 4
    assert "keeps the merged base in the run" in capsys.readouterr().err
    assert not (runs / "full-1").exists()


def test_stack_needs_a_parent(capsys):
    assert main(["plan", "recipes/smoke.yaml", "--set", "adapter.stack=merge_first"]) == 2
    assert "`stack` needs `start`" in capsys.readouterr().err
