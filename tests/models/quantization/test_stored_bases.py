"""Bases whose files are quantized already: their own mode is used, recorded, and merged into plain 16 bits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError, RecipeError, UsageError
from lora_chat.export.merge import merge_blend
from lora_chat.models.base_model import check_weights, find_base, load_base_model, load_meta_model
from lora_chat.models.quantization.coverage import QUANTIZED_CLASSES, measure_coverage
from lora_chat.models.quantization.dequantized_model import load_dequantized_model
from lora_chat.models.stored_precision import adopt_stored_precision
from lora_chat.system.hardware import Hardware
from tests.export.test_merge import open_blend, samples_for

CPU = Hardware("cpu", "test", 0, True, 2)
IDS = torch.arange(5, 60)[None]
DOWN = "model.layers.1.mlp.down_proj.weight"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 48]}


def precision(mode="none"):
    return plan_precision(QuantizationSection(mode=mode), CPU)


def load(folder, mode="none"):
    return load_base_model(find_base(BaseSection(name=str(folder))), precision(mode))


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="module")
def quantized(random_base, tmp_path_factory):
    """Return a function that writes a base in a format of bitsandbytes, once."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    formats = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.float16},
        "int8": {"load_in_8bit": True},
        "skip": {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "model.layers.0.mlp"]},
    }
    written = {}

    def write(name, architecture="llama"):
        if (name, architecture) not in written:
            folder = tmp_path_factory.mktemp(name) / "base"
            source = random_base(architecture, 8.0)
            config = BitsAndBytesConfig(**formats[name])
            options = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}, "quantization_config": config}
            shutil.copytree(source, folder)
            AutoModelForCausalLM.from_pretrained(source, **options).save_pretrained(folder)
            written[name, architecture] = folder
        return written[name, architecture]

    return write


@pytest.fixture
def changed(tmp_path):
    """Return a function that copies a base with changed weights."""

    def change(folder, function):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        weights = function(load_file(copy / "model.safetensors"))
        save_file({k: v.contiguous() for k, v in weights.items()}, copy / "model.safetensors", {"format": "pt"})
        return copy

    return change


@pytest.mark.parametrize(
    ("name", "architecture", "mode"),
    [("nf4", "llama", "8bit"), ("fp4", "llama", "none"), ("int8", "llama", "4bit"), ("int8", "gpt2", "none")],
)
def test_the_files_decide_the_mode_and_a_merge_is_plain_and_equal(
    name, architecture, mode, quantized, tmp_path, messages
):
    from transformers import AutoModelForCausalLM

    folder = quantized(name, architecture)
    base = find_base(BaseSection(name=str(folder)))
    own = "8bit" if name == "int8" else "4bit"
    adopted = adopt_stored_precision(precision(mode), base.name, folder)
    assert adopted.mode == own
    assert adopted.stored.quant_type == {"nf4": "nf4", "fp4": "fp4", "int8": None}[name]
    assert adopted.stored.double_quantization == (name == "nf4")
    assert any(f"its mode {own} is used in place of quantization.mode={mode}" in text for text in messages)
    model = load_base_model(base, precision(mode))
    kinds = {type(module).__name__ for module in model.modules()} & set(QUANTIZED_CLASSES)
    assert kinds == {"Linear8bitLt" if name == "int8" else "Linear4bit"}
    plain = load_dequantized_model(base, precision(mode))
    expected = plain(IDS).logits
    plain.save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in config
    assert {value.dtype for value in load_file(tmp_path / "plain" / "model.safetensors").values()} == {torch.bfloat16}
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(reopened(IDS).logits, expected)
    if own == "4bit":
        assert torch.nn.functional.kl_div(
            model(IDS).logits.float().log_softmax(-1), expected.float().log_softmax(-1), log_target=True
        ) < (1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_quantized_have_the_dtype_of_the_plan(dtype, quantized):
    base = find_base(BaseSection(name=str(quantized("nf4"))))  # written in bf16
    model = load_base_model(base, precision().model_copy(update={"dtype": dtype}))
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(("name", "mode"), [("nf4", "4bit"), ("skip", "4bit"), ("int8", "8bit")])
def test_coverage_counts_the_layers_that_are_loaded_quantized(name, mode, quantized):
    base = find_base(BaseSection(name=str(quantized(name))))
    adopted = adopt_stored_precision(precision(mode), base.name, base.folder)
    coverage = measure_coverage(load_meta_model(base), adopted)
    layers = [m for m in load_base_model(base, adopted).modules() if type(m).__name__ in QUANTIZED_CLASSES]
    assert coverage.quantized == sum(layer.in_features * layer.out_features for layer in layers)
    total = sum(p.numel() for p in load_meta_model(base).parameters())
    assert coverage.quantized + coverage.layers + coverage.other == total
    assert coverage.layers == (3 * 64 * 128 if name == "skip" else 0)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss", "gpt2"])
def test_coverage_says_that_experts_stay_in_16_bits(architecture, random_base):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    coverage = measure_coverage(load_meta_model(base), precision("4bit"))
    model = load_base_model(base, precision("4bit"))
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3)
    assert coverage.experts == experts
    assert ("3D expert weights" in coverage.describe("4bit", 16)) == (architecture != "gpt2")
    layers = [m for m in model.modules() if type(m).__name__ in QUANTIZED_CLASSES]
    assert coverage.quantized == sum(layer.in_features * layer.out_features for layer in layers)


DAMAGES = {
    "state": (lambda w: {k: v for k, v in w.items() if k != f"{DOWN}.quant_state.bitsandbytes__nf4"}, "are missing"),
    "plain layer": (lambda w: {k: v for k, v in w.items() if DOWN not in k} | {DOWN: torch.ones(64, 128)}, DOWN),
    "other size": (lambda w: w | {DOWN: w[DOWN][:-1]}, DOWN),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_refuses_a_4bit_base_whose_files_are_not_all_in_4_bits(damage, quantized, changed):
    change, word = DAMAGES[damage]
    folder = changed(quantized("nf4"), change)
    with pytest.raises(IntegrityError, match=word):
        check_weights(find_base(BaseSection(name=str(folder))))


def test_refuses_plain_weights_with_the_config_of_a_quantized_base(random_base, quantized, tmp_path):
    for name, word in (("nf4", "4bit"), ("int8", "8bit")):
        folder = tmp_path / name
        shutil.copytree(random_base("llama"), folder)
        shutil.copy(quantized(name) / "config.json", folder)
        with pytest.raises(IntegrityError, match=word):
            check_weights(find_base(BaseSection(name=str(folder))))


def fp8_twins(source, folder, *, blocks):
    """Write a base in FP8, with odd blocks or one scale for each weight, and its twin of plain weights."""
    weights = {name: value.bfloat16() for name, value in load_file(source / "model.safetensors").items()}
    stored, plain = {}, {}
    for name, value in weights.items():
        if "proj" not in name:
            stored[name] = plain[name] = value
            continue
        size = (48, 48) if blocks else value.shape
        rows, columns = (-(-length // step) for length, step in zip(value.shape, size, strict=True))
        scale = torch.rand(rows, columns, generator=torch.Generator().manual_seed(len(stored))) / 200 + 1e-3
        full = scale.repeat_interleave(size[0], 0)[: len(value)].repeat_interleave(size[1], 1)[:, : value.shape[1]]
        stored[name] = (value.float() / full).clamp(-448, 448).to(torch.float8_e4m3fn)
        plain[name] = (stored[name].float() * full).bfloat16()
        stored[f"{name}_scale_inv"] = scale if blocks else scale.reshape(())
        if not blocks:
            stored[name.removesuffix("weight") + "activation_scale"] = torch.tensor(1.0)
    folders = folder / "fp8", folder / "twin"
    for target, tensors in zip(folders, (stored, plain), strict=True):
        shutil.copytree(source, target)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    edit(folders[0], quantization_config=FP8 if blocks else FP8 | {"weight_block_size": None})
    return folders


@pytest.mark.parametrize("blocks", [True, False])
def test_an_fp8_base_equals_its_plain_twin(blocks, random_base, tmp_path, messages):
    folder, twin = fp8_twins(random_base("llama", 8.0), tmp_path, blocks=blocks)
    model = load(folder)
    assert torch.equal(model(IDS).logits, load(twin)(IDS).logits)
    model.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in load_file(twin / "model.safetensors").items())
    assert adopt_stored_precision(precision(), "base", folder).stored.method == "fp8"
    assert any("already quantized as FP8" in text for text in messages)
    with pytest.raises(RecipeError, match=r"already quantized as FP8.*quantization.mode=none"):
        adopt_stored_precision(precision("4bit"), "base", folder)


def test_refuses_an_fp8_base_without_a_scale_or_in_blocks_of_another_size(random_base, tmp_path):
    folder, _ = fp8_twins(random_base("llama"), tmp_path, blocks=True)
    base = find_base(BaseSection(name=str(folder)))
    weights = load_file(folder / "model.safetensors")
    edit(folder, quantization_config=FP8 | {"weight_block_size": [128, 128]})
    with pytest.raises(IntegrityError, match="in blocks of"):
        check_weights(base)
    edit(folder, quantization_config=FP8)
    save_file({k: v for k, v in weights.items() if k != f"{DOWN}_scale_inv"}, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=f"{DOWN} has no scale"):
        check_weights(base)


def test_refuses_fp8_weights_that_no_config_declares(random_base, tmp_path):
    folder, _ = fp8_twins(random_base("llama"), tmp_path, blocks=True)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v for k, v in weights.items() if "scale_inv" not in k}, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="FP8"):
        check_weights(find_base(BaseSection(name=str(folder))))


def test_an_mxfp4_base_equals_its_plain_twin(random_base, tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    source, folder, twin = random_base("gpt_oss", 8.0), tmp_path / "mxfp4", tmp_path / "twin"
    stored, plain = {}, {}
    generator = torch.Generator().manual_seed(1)
    for name, value in load_file(source / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")) and value.dim() == 3:
            experts, inputs, outputs = value.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator).to(torch.uint8)
            scales = torch.randint(118, 122, (experts, outputs, inputs // 32), generator=generator).to(torch.uint8)
            stored[f"{name}_blocks"], stored[f"{name}_scales"] = blocks, scales
            plain[name] = convert_moe_packed_tensors(blocks, scales)
            assert plain[name].shape == value.shape
        else:
            stored[name] = plain[name] = value.bfloat16()
    for target, tensors in ((folder, stored), (twin, plain)):
        shutil.copytree(source, target)
        save_file({k: v.contiguous() for k, v in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    edit(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.0.self_attn"]})
    assert torch.equal(load(folder)(IDS).logits, load(twin)(IDS).logits)


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_an_adapter_is_merged_into_the_weights_of_the_files(name, quantized, make_adapter, tmp_path):
    folder = quantized(name)
    _, trained = make_adapter(folder, tmp_path / "adapter")
    blend = open_blend(adopt_stored_precision(trained, "base", folder), tmp_path / "adapter")
    report = merge_blend(blend, samples_for(blend), tmp_path / "merged")
    assert not report.failures
    assert report.control_kl > 20 * report.mean_kl
    with pytest.raises(UsageError, match=r"--into original: .* already quantized as bitsandbytes"):
        merge_blend(blend, samples_for(blend), tmp_path / "other", original=True)
