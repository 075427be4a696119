"""A base whose files lack weights of its model, or contain others, is refused before training."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_chat.cli import main
from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError
from lora_chat.models import base_model
from lora_chat.models.base_model import check_weights, find_base, load_base_model
from lora_chat.system.hardware import Hardware

CPU = Hardware("cpu", "test", 0, True, 2)
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def write_base(random_base, tmp_path):
    """Return a function that copies a random base with changed weights and config, in one or two files."""

    def write(change, architecture="llama", *, config=None, is_sharded=False):
        folder = tmp_path / "base"
        shutil.copytree(random_base(architecture), folder)
        weights = load_file(folder / "model.safetensors")
        weights = {name: value.contiguous() for name, value in change(weights).items()}
        if is_sharded:
            (folder / "model.safetensors").unlink()
            names = sorted(weights)
            index = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
            for shard in set(index.values()):
                part = {name: weights[name] for name in names if index[name] == shard}
                save_file(part, folder / shard, metadata={"format": "pt"})
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        if config:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return find_base(BaseSection(name=str(folder)))

    return write


def without(*words):
    return lambda weights: {name: value for name, value in weights.items() if not any(word in name for word in words)}


def renamed(old, new):
    return lambda weights: {name.replace(old, new, 1): value for name, value in weights.items()}


def added(**tensors):
    return lambda weights: weights | {name.replace("__", "."): value for name, value in tensors.items()}


def with_head_like_embedding(weights):
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}


REFUSED = {
    "missing": (without("layers.1.mlp"), ["3 of 21 weights of the model are missing", DOWN, "download the base again"]),
    "head": (without("lm_head"), ["1 of 21 weights of the model are missing (lm_head.weight)"]),
    "foreign": (added(model__extra__weight=torch.ones(2)), ["1 are foreign to the model (model.extra.weight)"]),
    "layer": (
        lambda w: (
            w | {name.replace("layers.1.", "layers.2."): v.clone() for name, v in w.items() if "layers.1." in name}
        ),
        ["9 are foreign to the model (model.layers.2."],
    ),
    "module": (renamed("", "module."), ["21 of 21", "21 are foreign", "without 'module.' they are the model's"]),
    "PEFT": (renamed("", "base_model.model."), ["without 'base_model.model.'"]),
    "compiled": (renamed("model.", "model._orig_mod."), ["without '_orig_mod.'"]),
    "adapter": (
        lambda w: (
            renamed("q_proj.", "q_proj.base_layer.")(w)
            | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 64)}
        ),
        ["merge_and_unload"],
    ),
    "shape": (lambda w: w | {DOWN: w[DOWN].T}, [f"1 have another shape ({DOWN}: 128x64 in the file, 64x128"]),
    "integers": (lambda w: w | {DOWN: w[DOWN].to(torch.int8)}, [f"1 are not floating-point numbers ({DOWN})"]),
    "quantized": (
        lambda w: w | {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)},
        ["The weights are quantized", "unquantized base"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_files_of_another_model_from_headers_alone(name, write_base):
    change, words = REFUSED[name]
    base = write_base(change)
    with pytest.raises(IntegrityError) as refusal:
        check_weights(base)
    assert [word for word in words if word not in str(refusal.value)] == []


def test_refuses_experts_of_integers(write_base):
    name = "model.layers.0.mlp.experts.1.gate_proj.weight"
    base = write_base(lambda weights: weights | {name: weights[name].to(torch.int8)}, "qwen3_moe")
    with pytest.raises(IntegrityError, match="not floating-point"):
        check_weights(base)


def test_finds_a_tensor_that_one_shard_lacks(write_base):
    base = write_base(lambda weights: weights, is_sharded=True)
    check_weights(base)
    path = base.folder / "model-00001-of-00002.safetensors"
    weights = load_file(path)
    name = sorted(weights)[-1]
    save_file(without(name)(weights), path, metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=rf"1 of 21 .* missing \({name}\)"):
        check_weights(base)


ACCEPTED = {
    "tied head absent": (without("lm_head"), "llama", {"tie_word_embeddings": True}),
    "tied head equal": (with_head_like_embedding, "llama", {"tie_word_embeddings": True}),
    "rotary buffers": (added(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8)), "llama", {}),
    "mask of CodeGen": (added(transformer__h__0__attn__causal_mask=torch.ones(1, 8, dtype=torch.bool)), "gpt2", {}),
    "prediction heads": (added(mtp__layers__0__weight=torch.ones(2)), "llama", {}),
    "layer after the last": (
        added(model__layers__2__eh_proj__weight=torch.ones(2)),
        "llama",
        {"num_nextn_predict_layers": 1},
    ),
    "no prefix": (renamed("model.", ""), "llama", {}),
    "masks of GPT-2": (added(transformer__h__0__attn__bias=torch.ones(1, 1, 8, 8, dtype=torch.uint8)), "gpt2", {}),
    "experts": (lambda weights: weights, "qwen3_moe", {}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_loads_files_with_known_differences(name, write_base):
    change, architecture, config = ACCEPTED[name]
    base = write_base(change, architecture, config=config)
    model = load_base_model(base, plan_precision(QuantizationSection(mode="none"), CPU))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["none", "4bit", "8bit"])
def test_refuses_after_loading_if_headers_were_not_compared(mode, write_base, monkeypatch):
    base = write_base(without("layers.1.mlp"))
    monkeypatch.setattr(base_model, "check_weight_headers", lambda *_: None)
    with pytest.raises(IntegrityError, match=r"3 of 21 weights .* missing"):
        load_base_model(base, plan_precision(QuantizationSection(mode=mode), CPU))


@pytest.mark.parametrize("early", [True, False])
def test_refuses_a_head_that_differs_from_the_embedding_it_is_tied_to(early, write_base, monkeypatch):
    base = write_base(lambda weights: weights, config={"tie_word_embeddings": True})
    if not early:
        monkeypatch.setattr(base_model, "check_weight_headers", lambda *_: None)
    with pytest.raises(
        IntegrityError, match=r"1 differ from the weights that config.json ties them to \(lm_head.weight\)"
    ):
        load_base_model(base, plan_precision(QuantizationSection(mode="none"), CPU))


@pytest.fixture(scope="module")
def quantized_folder(random_base, tmp_path_factory):
    """Return a folder with a base that bitsandbytes quantized to 4 bits."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source, folder = random_base("llama"), tmp_path_factory.mktemp("quantized")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    options = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    AutoModelForCausalLM.from_pretrained(source, quantization_config=config, **options).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lacks", [None, ".mlp.", "1.mlp.down_proj.weight.absmax", "nested_absmax", "input_layernorm"])
def test_compares_names_of_a_quantized_base(lacks, quantized_folder, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(quantized_folder, folder)
    base = base_model.LocalBase("quantized", folder)
    if lacks is None:
        load_base_model(base, plan_precision(QuantizationSection(mode="none"), CPU))
        return
    weights = load_file(folder / "model.safetensors")
    save_file(without(lacks)(weights), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="are missing") as refusal:
        check_weights(base)
    assert lacks in str(refusal.value)


def test_sft_refuses_missing_weights_with_one_message_and_no_run(write_base, tmp_path, capsys):
    base = write_base(without("layers.1.mlp"))
    row = {"messages": [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    (tmp_path / "recipe.yaml").write_text("data:\n  train: rows.jsonl\n")
    runs = tmp_path / "runs"
    settings = ["--set", f"base.name={base.folder}", "--set", f"output.directory={runs}"]
    code = main(["sft", str(tmp_path / "recipe.yaml"), *settings])
    assert code == IntegrityError.exit_code
    error = capsys.readouterr().err
    assert error.count("3 of 21 weights of the model are missing") == 1
    assert "Traceback" not in error
    assert "Fix: copy or download the base again." in error
    assert not runs.exists() or not any(runs.iterdir())
