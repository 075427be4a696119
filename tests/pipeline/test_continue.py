"""Training on from an adapter: its settings, base and tensors, resumption, and the lineage of the child."""

import json
import shutil

import pytest
import torch

from lora_chat.cli import main
from lora_chat.config.recipe import BaseSection
from lora_chat.models.adapter import adapter_weights, continue_adapter, encode_stored_weights
from lora_chat.models.adapter_files import WEIGHTS_NAME, read_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.pipeline.parent import read_lineage
from lora_chat.runs.origin import sign_run
from lora_chat.runs.run_folder import RunFolder
from lora_chat.sharing.parcel import open_parcel

DIALOGUES = "recipes/smoke/dialogues.jsonl"
PARENT = {"max_steps": 2, "effective_batch_size": 4, "learning_rate": 1e-2}


def recipe(path, name, training, adapter="{}", **sections):
    lines = {
        "adapter": adapter,
        "data": f"{{train: {path.cwd() / DIALOGUES}, validation_share: 0.25, max_length: 512}}",
        "training": json.dumps(training),
        "evaluation": "{samples: 1, max_new_tokens: 4}",
        "output": f"{{directory: {path / 'runs'}}}",
    } | sections
    file = path / f"{name}.yaml"
    file.write_text("".join(f"{section}: {values}\n" for section, values in lines.items()))
    return file


@pytest.fixture(scope="module")
def family(cache_home, tmp_path_factory):
    """Return a folder with a parent run, `runs/parent-1`, and its child, `runs/child-1`."""
    path = tmp_path_factory.mktemp("family")
    base = {"base": "{name: tiny-random}", "quantization": "{mode: none}"}
    parent = recipe(
        path, "parent", PARENT, "{rank: 4, alpha: 16, variant: rslora, target_modules: [q_proj, v_proj]}", **base
    )
    assert main(["sft", str(parent), "--json"]) == 0
    training = {"max_steps": 3, "effective_batch_size": 2, "learning_rate": 1e-3}
    data = f"{{train: {path.cwd() / DIALOGUES}, validation_share: 0.25, max_length: 512, seed: 7}}"
    child = recipe(path, "child", training, "{start: runs/parent-1}", data=data, checkpoint="{every_steps: 1, keep: 5}")
    assert main(["sft", str(child), "--json"]) == 0
    return path


@pytest.fixture
def copy(family, tmp_path):
    """Return a copy of the family that a test may change."""
    shutil.copytree(family, tmp_path / "family")
    return tmp_path / "family"


def adapter_bytes(run):
    return (run / "adapter" / WEIGHTS_NAME).read_bytes()


def refusal(capsys, *arguments, code=2):
    capsys.readouterr()
    assert main(list(map(str, arguments))) == code
    return capsys.readouterr().err


def test_child_begins_with_the_tensors_of_its_parent(family):
    stored = read_adapter(family / "runs" / "parent-1" / "adapter")
    precision = RunFolder(family / "runs" / "child-1").read_precision()
    model = continue_adapter(load_base_model(find_base(BaseSection(name="tiny-random")), precision), stored, 0.0)
    saved, trained = stored.read_weights(), adapter_weights(model)
    assert saved.keys() == trained.keys()
    for name, tensor in saved.items():
        assert trained[name].dtype == torch.float32
        assert trained[name].to(tensor.dtype).equal(tensor)
        assert tensor.float().equal(trained[name])
    assert all(p.requires_grad == (".lora_" in name) for name, p in model.named_parameters())
    assert encode_stored_weights(stored) == adapter_bytes(family / "runs" / "parent-1")
    assert adapter_bytes(family / "runs" / "child-1") != adapter_bytes(family / "runs" / "parent-1")


def test_first_loss_of_the_child_is_the_loss_of_its_parent(family):
    parent = json.loads((family / "runs" / "parent-1" / "result.json").read_text())
    child = json.loads((family / "runs" / "child-1" / "result.json").read_text())
    on_parent_data = child["generations"]["parent_data"]["validation_loss"]
    assert on_parent_data["parent"] == parent["validation_loss"]["adapted"]
    assert on_parent_data["base"] == parent["validation_loss"]["base"]
    on_child_data = child["generations"]["child_data"]["validation_loss"]
    assert on_child_data["base"] == child["validation_loss"]["base"]
    assert on_child_data["child"] == child["validation_loss"]["adapted"]
    assert len({*on_child_data.values()}) == 3
    report = json.loads((family / "runs" / "child-1" / "generations.json").read_text())
    assert report["parent_data"]["samples"][0].keys() == {"prompt", "reference", "base", "parent", "child"}


def test_settings_left_out_are_the_parents_and_recorded(family):
    plan = RunFolder(family / "runs" / "child-1").read_plan()
    adapter = plan.adapter
    assert (adapter.rank, adapter.alpha, adapter.variant) == (4, 16, "rslora")
    assert set(adapter.target_modules) == {"q_proj", "v_proj"}
    assert (plan.base.name, plan.precision.mode) == ("tiny-random", "none")
    recorded = (family / "runs" / "child-1" / "recipe.yaml").read_text()
    assert "rank: 4\n" in recorded
    assert f"start: {family}/runs/parent-1\n" in recorded


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapter.rank=8", "adapter.rank is 8, and the parent has 4"),
        ("adapter.variant=lora", "adapter.variant is lora, and the parent has rslora"),
        ("adapter.target_modules=[q_proj]", "the recipe has no LoRA and the parent has LoRA of rank 4"),
        ("adapter.target_modules=all-linear", "on model.layers.0.mlp.down_proj the recipe has LoRA of rank 4"),
        ("adapter.start=runs/parent-1/checkpoints/checkpoint-2", "is a checkpoint"),
        ("adapter.start=runs/nothing-1", "no run"),
    ],
)
def test_refuses_settings_that_contradict_the_parent(family, capsys, monkeypatch, setting, message):
    monkeypatch.chdir(family)
    for command in ("sft", "plan") if "target" not in setting else ("sft",):
        assert message in refusal(capsys, command, "child.yaml", "--set", setting)
    assert not (family / "runs" / "child-2").exists()


def test_accepts_the_parents_settings_when_they_are_repeated(family, capsys):
    settings = ["adapter.rank=4", "adapter.target_modules=[v_proj, q_proj]", "base.name=tiny-random"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["data", str(family / "child.yaml"), *arguments]) == 0


def test_refuses_another_base_or_template_before_data_is_read(copy, capsys, random_base):
    other = random_base("llama")
    (copy / "broken.jsonl").write_text("no JSON\n")
    broken = ("--set", f"data.train={copy / 'broken.jsonl'}")
    error = refusal(capsys, "sft", copy / "child.yaml", "--set", f"base.name={other}", *broken, code=7)
    assert "belongs to another base" in error and "weights of the base" in error
    error = refusal(capsys, "sft", copy / "child.yaml", "--set", "data.template=plain", *broken, code=7)
    assert "chat template" in error and "leave data.template out" in error


def interrupt(run, step):
    """Turn a finished run into one that was killed after a step."""
    for path in (run / "result.json", run / "comparison.json", run / "generations.json"):
        path.unlink()
    shutil.rmtree(run / "adapter")
    for checkpoint in (run / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    sign_run(RunFolder(run))


def test_interrupted_child_resumes_to_the_same_bytes_without_its_parent(copy, family, messages):
    run = copy / "runs" / "child-1"
    interrupt(run, 1)
    (copy / "runs" / "parent-1").rename(copy / "runs" / "elsewhere")
    assert main(["sft", str(copy / "child.yaml"), "--resume", str(run)]) == 0
    assert any("continues with its own copy" in message for message in messages)
    assert adapter_bytes(run) == adapter_bytes(family / "runs" / "child-1")


def test_changed_parent_is_refused_when_a_run_is_resumed(copy, family, capsys):
    run = copy / "runs" / "child-1"
    interrupt(run, 1)
    start = f"adapter.start={family / 'runs' / 'child-1' / 'adapter'}"
    error = refusal(capsys, "sft", copy / "child.yaml", "--set", start, "--resume", run, code=7)
    assert "parent.adapter: it was" in error
    error = refusal(capsys, "sft", copy / "child.yaml", "--set", f"adapter.start={run}", "--resume", run)
    assert "is the run itself" in error
    error = refusal(capsys, "sft", copy / "child.yaml", "--set", f"adapter.start={run}")
    assert "its training was interrupted" in error
    shutil.copytree(family / "runs" / "parent-1" / "adapter", run / "adapter")  # a stopped training saves one, too
    error = refusal(capsys, "sft", copy / "child.yaml", "--set", f"adapter.start={run}")
    assert "is not finished" in error


def test_damaged_copy_of_the_parent_is_noticed(copy, capsys):
    run = copy / "runs" / "child-1"
    weights = run / "parent" / WEIGHTS_NAME
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert "its weights do not have the recorded digest" in refusal(capsys, "eval", run, code=7)


def test_eval_compares_all_generations_again(family, capsys):
    capsys.readouterr()
    assert main(["eval", str(family / "runs" / "child-1"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    result = json.loads((family / "runs" / "child-1" / "result.json").read_text())
    assert again["generations"] == result["generations"]


@pytest.fixture(scope="module")
def parcels(family):
    """Return the parcels of parent and child, without the parity check in another process."""
    from lora_chat.pipeline import pack_run
    from tests.sharing.forging import make_members

    proof = json.loads(make_members()["receipt.json"])["proof"]
    with pytest.MonkeyPatch.context() as patch:
        report = pack_run.ParityReceipt.model_validate_json(json.dumps(proof))
        patch.setattr(pack_run, "_read_or_run_parity_check", lambda *_: report)
        for name in ("parent", "child"):
            assert main(["pack", str(family / "runs" / f"{name}-1"), "--out", str(family / f"{name}.lorachat")]) == 0
    return family


def test_receipt_names_the_parent_and_verify_follows_it(parcels, capsys):
    child, parent = (open_parcel(parcels / f"{name}.lorachat") for name in ("child", "parent"))
    assert (parent.receipt.version, parent.receipt.lineage) == (6, None)
    assert json.loads(parent.members["receipt.json"])["lineage"] is None
    assert child.receipt.version == 6
    (entry,) = child.receipt.lineage
    assert entry.adapter == parent.receipt.members[WEIGHTS_NAME].sha256
    assert entry.config == parent.receipt.members["adapter_config.json"].sha256
    assert (entry.rows, entry.held_out) == (parent.receipt.data.rows, parent.receipt.data.held_out)
    assert b"continued from parent" in child.members["README.md"]
    for source in (parcels / "parent.lorachat", parcels / "runs" / "parent-1"):
        capsys.readouterr()
        assert main(["verify", str(parcels / "child.lorachat"), "--parent", str(source), "--json"]) == 0
        assert "lineage" in json.loads(capsys.readouterr().out)["checked_here"]
    assert main(["verify", str(parcels / "child.lorachat"), "--json"]) == 0
    assert "lineage" in json.loads(capsys.readouterr().out)["sender_states"]
    error = refusal(capsys, "verify", parcels / "child.lorachat", "--parent", parcels / "child.lorachat", code=7)
    assert "is refused" in error


def test_child_of_a_parcel_has_two_ancestors(parcels, capsys, monkeypatch):
    monkeypatch.chdir(parcels)
    settings = ["adapter.start=child.lorachat", "training.max_steps=1", "output.name=grandchild"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["sft", "child.yaml", *arguments]) == 0
    lineage = read_lineage(RunFolder(parcels / "runs" / "grandchild-1"))
    assert [parent.name for parent in lineage] == ["child-1", "parent-1"]
    assert "not measured, because the parent's held-out data is unknown" in capsys.readouterr().err
