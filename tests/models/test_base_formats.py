"""Formats of weights that are never loaded: one sentence names the format and what to use instead."""

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models.base_config import find_base_config
from lora_chat.models.base_model import check_weights, find_base, load_base_model
from lora_chat.models.quantization_checks import parse_quantization_config
from lora_chat.system.hardware import Hardware

CPU = Hardware("cpu", "test", 0, True, 2)
MLX = {"group_size": 64, "bits": 4}
DECLARED = {
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "gptq in text_config": {"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 8}}},
    "compressed-tensors": {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
    "mlx": {"quantization": MLX, "quantization_config": MLX},
    "mlx of older versions": {"quantization": MLX},
    **{
        name: {"quantization_config": {"quant_method": name}}
        for name in ("hqq", "eetq", "quanto", "aqlm", "bitnet", "vptq", "torchao", "fbgemm_fp8", "modelopt", "new")
    },
}
WEIGHTS = "model.safetensors"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 988097824\n"


@pytest.fixture
def folder(random_base, tmp_path):
    copy = tmp_path / "a base"
    shutil.copytree(random_base("llama"), copy)
    return copy


def find(folder):
    return find_base(BaseSection(name=str(folder)))


@pytest.mark.parametrize("name", DECLARED)
def test_refuses_other_formats_and_names_the_unquantized_base(name, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | DECLARED[name]))
    for read in (find, lambda folder: find_base_config(BaseSection(name=str(folder)))):
        with pytest.raises(UnavailableError, match=rf"already quantized by {name.split()[0]}.*Fix: use the") as told:
            read(folder)
        assert "hub page" in str(told.value)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model:\n- Qwen/Qwen2.5-7B-Instruct\n---\n# A model\n")
    with pytest.raises(UnavailableError, match=r"the unquantized base Qwen/Qwen2.5-7B-Instruct;"):
        find(folder)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_refuses_the_files_by_which_older_programs_declare_quantized_weights(name, folder):
    (folder / name).write_text("{}")
    with pytest.raises(UnavailableError, match=name):
        find(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"bnb_4bit_quant_type": "af4"},
        {"bnb_4bit_compute_dtype": "int8"},
        {"bnb_4bit_quant_storage": "bfloat16"},
        {"load_in_8bit": True},
        {"llm_int8_has_fp16_weight": True},
    ],
    ids=str,
)
def test_refuses_settings_of_bitsandbytes_that_are_not_read(change):
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert parse_quantization_config(settings, "config.json").compute_dtype == "float32"  # as in bitsandbytes
    with pytest.raises(UnavailableError, match="already quantized by bitsandbytes"):
        parse_quantization_config(settings | change, "config.json")


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_names_pointers_of_git_lfs_and_the_command_that_fetches_the_files(name, folder):
    (folder / name).write_text(POINTER)
    with pytest.raises(UnavailableError, match=rf"pointers of Git LFS in place of files: {name}") as told:
        find(folder)
    assert str(told.value).endswith(f"git -C {shlex.quote(str(folder))} lfs pull")


def test_the_command_in_the_message_converts_pickled_weights(folder, monkeypatch):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:]), 1):
        torch.save({name: weights[name] for name in part}, folder / f"pytorch_model-{number}.bin")
    (folder / "training_args.bin").write_bytes(b"a pickle of code")
    with pytest.raises(UnavailableError, match="has only pickled weights") as told:
        check_weights(find(folder))
    with pytest.raises(UnavailableError, match="has only pickled weights"):
        find_base_config(BaseSection(name=str(folder)))
    command = shlex.split(str(told.value).rpartition("only tensors: ")[2])
    assert command[:4] == ["cd", str(folder), "&&", "python"]
    assert "weights_only=True" in command[5]
    monkeypatch.chdir(folder)
    exec(command[5], {})
    assert all(torch.equal(load_file(folder / WEIGHTS)[name], value) for name, value in weights.items())
    check_weights(find(folder))


def test_refuses_a_tensor_that_two_files_contain(folder):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in shards.items():
        save_file({name: weights[name].contiguous() for name in part}, folder / file, {"format": "pt"})
    index = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(IntegrityError, match=rf"Two files of .* contain {names[9]}"):
        check_weights(find(folder))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "base_model.model.model."])
def test_names_the_prefix_of_a_wrapper(prefix, folder):
    weights = load_file(folder / WEIGHTS)
    save_file({f"{prefix}{name}": value for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(IntegrityError, match=r"foreign.*\n.*prefix of a wrapper"):
        check_weights(find(folder))


def test_loads_the_prefix_that_transformers_removes(folder):
    weights = load_file(folder / WEIGHTS)
    save_file({f"model.{name}": value for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    model = load_base_model(find(folder), plan_precision(QuantizationSection(mode="none"), CPU))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in weights.items())
