"""Bases as people have them, through the command line: trained and merged as they are, or refused before data is read.

README.md in this folder lists the kinds of bases and adapters, and the tests that cover each.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_chat.cli import main
from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.system.hardware import Hardware

MLP = "model.layers.1.mlp"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 988097824\n"


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder, change):
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_tensors(folder):
    rewrite(folder, lambda weights: {name: value for name, value in weights.items() if MLP not in name})


def add_prefix(folder):
    rewrite(folder, lambda weights: {f"module.{name}": value for name, value in weights.items()})


def add_zeros(folder):
    rewrite(folder, lambda weights: weights | {f"{MLP}.up_proj.bias": torch.zeros(128)})


def say_awq(folder):
    edit(folder / "config.json", quantization_config=AWQ)


def say_fp8(folder):
    edit(folder / "config.json", quantization_config=FP8)


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def leave_pointer(folder):
    (folder / "model.safetensors").write_text(POINTER)


def put_adapter_inside(folder):
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))


def make_adapter_of_it(folder):
    for path in folder.iterdir():
        path.unlink()
    put_adapter_inside(folder)
    save_file({"x.lora_A.weight": torch.ones(4, 64)}, folder / "adapter_model.safetensors")


def name_unknown_architecture(folder):
    edit(folder / "config.json", model_type="unheard_of")


def name_no_architecture(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "model_type"}))


def break_config(folder):
    (folder / "config.json").write_text("{")


def end_with_text(folder):
    edit(folder / "generation_config.json", eos_token_id="2")


def lose_rows(folder):
    edit(folder / "config.json", vocab_size=250)
    rewrite(folder, lambda weights: {k: v[:250] if v.shape[0] == 259 else v for k, v in weights.items()})


def keep_shards_without_index(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")


def name_a_missing_shard(folder):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def return_tuples(folder):
    edit(folder / "config.json", return_dict=False)


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "tekken.json").write_text("{}")


REFUSED = {
    "missing_tensors": (lose_tensors, 7, rf"3 of 21 weights of the model are missing \({re.escape(MLP)}.down_proj"),
    "prefixed": (add_prefix, 7, r"21 of 21 .*21 are foreign .*without 'module\.' they are the model's"),
    "foreign tensors": (add_zeros, 7, rf"1 are foreign to the model \({re.escape(MLP)}.up_proj.bias\)"),
    "awq": (say_awq, 8, "already quantized by awq.*unquantized base"),
    "fp8, 4bit": (say_fp8, 2, "already quantized as FP8.*quantization.mode=none"),
    "bin_only": (pickle_weights, 8, "pickled weights.*never read.*Fix: .*save_file"),
    "lfs_pointer": (leave_pointer, 8, "Git LFS.*Fix: git lfs install && git -C .* lfs pull"),
    "adapter_inside": (put_adapter_inside, 7, "contains an adapter.*Fix: .*remove adapter_config.json"),
    "adapter as base": (make_adapter_of_it, 8, "is an adapter, not a base.*adapter.start.*lora-chat merge"),
    "unknown architecture": (name_unknown_architecture, 8, "cannot be read: .*unheard_of.*Fix: use the base as"),
    "no architecture": (name_no_architecture, 8, "cannot be read: .*Fix: .*with model_type in config.json"),
    "broken config": (break_config, 8, "config.json is not valid JSON.*Fix: replace it"),
    "eos as text": (end_with_text, 8, "eos_token_id = '2' is not a whole number. Fix: replace the file"),
    "small embedding": (lose_rows, 8, "tokens beyond the 250 embeddings. Fix: use the tokenizer files"),
    "shards without index": (keep_shards_without_index, 8, "no weights in safetensors.*index.json.*Fix: "),
    "missing shard": (name_a_missing_shard, 7, "model-00001-of-00001.safetensors is missing"),
    "no named outputs": (return_tuples, 8, "return_dict to false. Fix: remove return_dict"),
    "tekken_only": (lose_tokenizer, 8, r"only a tekken\.json.*Fix: "),
}


@pytest.fixture
def start_sft(tmp_path):
    """Return a function that starts a training with the smoke recipe on a folder, and returns the exit code."""

    def start(base, **settings):
        settings = {"base.name": base, "output.directory": tmp_path / "runs", "output.name": "run"} | settings
        given = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
        return main(["sft", "recipes/smoke.yaml", "--json", *given])

    return start


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_a_base_before_data_is_read(name, random_base, start_sft, tmp_path, capsys):
    change, code, pattern = REFUSED[name]
    folder = shutil.copytree(random_base("llama"), tmp_path / "my base, ü")
    change(folder)
    (tmp_path / "bad.jsonl").write_text("{")
    settings = {"data.train": tmp_path / "bad.jsonl", "quantization.mode": "4bit" if "4bit" in name else "none"}
    assert start_sft(folder, **settings) == code
    message = capsys.readouterr().err
    assert re.search(pattern, message, re.DOTALL), message
    assert "Fix: " in message and "Traceback" not in message
    assert not (tmp_path / "runs").exists() or not any(Path(tmp_path / "runs").iterdir())


def test_config_that_returns_attentions_can_be_saved_again(random_base, tmp_path):
    folder = shutil.copytree(random_base("llama"), tmp_path / "base")
    edit(folder / "config.json", output_attentions=True)
    precision = plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, True, 2))
    load_base_model(find_base(BaseSection(name=str(folder))), precision).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_processes_without_an_address_are_refused(start_sft, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert start_sft("tiny-random") == 2
    assert "MASTER_ADDR is not set" in capsys.readouterr().err


def test_table_names_existing_tests():
    tests = Path(__file__).parents[1]
    table = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", table)
    assert len(named) > 20
    absent = [(file, name) for file, name in named if f"def {name}".rstrip() not in (tests / file).read_text("utf-8")]
    assert absent == []
