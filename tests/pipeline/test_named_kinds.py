"""Adapters named as bases, bases named as adapters, and adapters on the hub are told apart before anything loads."""

import io
import json
import shutil

import pytest
from hub_adapter import serve

from lora_chat.cli import main
from lora_chat.config.recipe import BaseSection
from lora_chat.errors import IntegrityError, UnavailableError, UsageError
from lora_chat.models.base_config import find_base_config
from lora_chat.models.base_model import find_base
from lora_chat.pipeline.open_adapter import TrustOptions, find_adapter, open_adapter
from lora_chat.pipeline.open_chat import open_chat
from lora_chat.pipeline.parent import find_parent


@pytest.fixture(scope="module")
def adapter(random_base, make_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    make_adapter(random_base("llama", 8.0), folder, size=0.02)
    (folder / "lora_chat.json").unlink()
    return folder


def test_adapter_run_and_parcel_are_not_bases(adapter, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("plan.json", "recipe.yaml"):
        (tmp_path / "run" / name).write_text("{}")
    (tmp_path / "x.lorachat").write_bytes(b"PK")
    shutil.copytree(adapter, tmp_path / "with-config")
    (tmp_path / "with-config" / "config.json").write_text("{}")
    shutil.copytree(adapter, tmp_path / "several" / "checkpoint-5")
    for path, kind in (
        (adapter, "an adapter"),
        (tmp_path / "with-config", "an adapter"),
        (tmp_path / "run", "a run"),
        (tmp_path / "x.lorachat", "a parcel"),
        (tmp_path / "several", r"a folder of adapters \(checkpoint-5\)"),
    ):
        with pytest.raises(UnavailableError, match=f"is {kind}, not a base.*\n.*merge it first"):
            find_base(BaseSection(name=str(path)))


def test_base_with_an_adapter_inside_is_refused(random_base, tmp_path):
    base = shutil.copytree(random_base("llama"), tmp_path / "base")
    (base / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    with pytest.raises(IntegrityError, match="contains an adapter"):
        find_base(BaseSection(name=str(base)))
    for open_it in (
        lambda: open_adapter(str(base)),
        lambda: open_chat(str(base), None, None, 5, False, TrustOptions()),
    ):
        with pytest.raises(IntegrityError, match=r"a base with the config of an adapter.*\n.*remove adapter_config"):
            open_it()


def test_folder_that_is_no_adapter_says_what_it_is(random_base, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "several" / "checkpoint-5")
    shutil.copytree(adapter, tmp_path / "several" / "checkpoint-9")
    (tmp_path / "weights").mkdir()
    shutil.copy(adapter / "adapter_model.safetensors", tmp_path / "weights")
    for path, match in (
        (random_base("llama"), "is a whole model, not an adapter"),
        (tmp_path / "several", "folders in it have: checkpoint-5, checkpoint-9"),
        (tmp_path / "weights", "no adapter_config.json, so its rank and scale"),
        (tmp_path, "not a run"),
    ):
        with pytest.raises(UsageError, match=match):
            find_adapter(str(path))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("/home/someone/models/llama", r"a path that is not opened.*\n.*--base FOLDER, or --base OWNER/NAME"),
        ("unsloth/llama-3-8b-bnb-4bit", "--base unsloth/llama-3-8b-bnb-4bit. That is a quantized copy"),
        ("mlx-community/Llama-3-4bit", "quantized copy"),
        ("stranger/base", "--base stranger/base. The digest"),
        (None, "names no base model. Fix: name it with --base"),
    ],
)
def test_missing_base_is_named_with_its_remedy(adapter, tmp_path, name, match):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
    with pytest.raises(UnavailableError, match=match):
        open_adapter(str(folder))


def test_adapter_without_a_name_of_a_base_opens_on_a_named_one(adapter, random_base, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    base = str(random_base("llama", 8.0))
    assert open_adapter(str(folder), TrustOptions(base=base)).adapter.stored.base == (base, None)


def test_training_on_from_an_adapter_that_contradicts_its_weights_is_refused(adapter, random_base, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"layers_to_transform": [1]}))
    with pytest.raises(IntegrityError, match=r"does not name 7 layers that have weights.*\nFix: correct"):
        find_parent(str(folder), "start", BaseSection(name=str(random_base("llama", 8.0))))


@pytest.fixture
def hub(adapter, tmp_path, monkeypatch):
    """Serve the adapter as evil/base on a stand-in of the hub."""
    yield from serve({path.name: path.read_bytes() for path in adapter.iterdir()}, tmp_path, monkeypatch)


def test_adapter_of_the_hub_opens_in_every_command(hub, random_base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hub.files |= {"adapter_model.bin": b"pickle", "training_args.bin": b"pickle", "code.py": b"raise"}
    base = ["--base", str(random_base("llama", 8.0))]
    with pytest.raises(UnavailableError, match="is an adapter, not a base"):
        find_base(BaseSection(name="evil/base"))
    with pytest.raises(UnavailableError, match="is an adapter, not a base"):
        find_base_config(BaseSection(name="evil/base"))
    assert main(["eval", "evil/base", *base]) == 2  # no dialogues
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", "evil/base", *base]) == 0
    asked = {path.rpartition("/")[2] for command, path, _ in hub.asked}
    assert "adapter_model.safetensors" in asked and not asked & {"adapter_model.bin", "training_args.bin", "code.py"}
    hub.asked.clear()
    assert main(["merge", "evil/base", *base, "--to", str(tmp_path / "merged")]) == 0
    assert main(["merge", "evil/base", "--to", str(tmp_path / "again")]) == 8
    assert hub.asked == []  # cached
    assert "--base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.bin": b""}, "no adapter in safetensors"),
        ({"config.json": b"{}", "model.safetensors": b"x"}, "is a whole model"),
        ({"checkpoint-5/adapter_config.json": b"{}"}, "folders in it have: checkpoint-5"),
        ({"README.md": b""}, "is not an adapter"),
        ({"receipt.json": b"{}", "adapter_config.json": b"{}"}, "lora-chat pull"),
    ],
)
def test_other_repositories_of_the_hub_are_refused(hub, files, match):
    hub.files = files
    with pytest.raises(UnavailableError, match=match):
        find_adapter("evil/base")


def test_mistyped_run_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    with pytest.raises(UsageError, match="There is no run evil/base"):
        find_adapter("evil/base")
    assert hub.asked == []
