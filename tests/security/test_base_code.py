"""A base's config cannot choose code: kernels of a hub, methods of quantization, other names, adapters beside it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lora_chat
from lora_chat.cli import main
from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError, RecipeError, UnavailableError
from lora_chat.models.base_config import find_base_config
from lora_chat.models.base_model import (
    LocalBase,
    find_base,
    load_base_model,
    load_meta_model,
    load_tokenizer,
    read_config,
)
from lora_chat.models.bundled import find_bundled_base
from lora_chat.models.config_checks import check_no_remote_code
from lora_chat.system.hardware import Hardware

KERNEL = "evil/kernel"
WORDS = ("attn_implementation", "experts_implementation")
CODE = [
    *({f"{mark}{key}{end}": word} for key in WORDS for mark in ("", "_") for end in ("", "_internal")[: len(mark) + 1]
      for word in (KERNEL, f"{KERNEL}:forward", f"{KERNEL}@main", f"paged|{KERNEL}", {"": KERNEL}, ["sdpa"], 3)),
    *({"attn_implementation": word} for word in ("flash_attention_2", "flash_attention_3", "kernels-community/x", "")),
    *({"_experts_implementation": word} for word in ("deepgemm", "sonicmoe", "")),
    {"use_kernels": True},
    {"kernel_config": {"kernel_mapping": {"RMSNorm": f"{KERNEL}:RMSNorm"}}},
    {"allow_all_kernels": True},
    {"attribute_map": {"x": "_attn_implementation"}, "x": KERNEL},
    {"gguf_file": "model.gguf"},
]  # fmt: skip
HARMLESS = [
    {},
    {"_attn_implementation": None},
    {"_attn_implementation": "eager"},
    {"attn_implementation": {"": "sdpa", "text_config": "eager"}},
    {"experts_implementation": "batched_mm"},
    {"use_kernels": False, "attribute_map": {}, "quantization_config": None},
]


def _methods():
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return [*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes", "made-up", None, 3]


@pytest.fixture
def altered(cache_home, tmp_path):
    """Return a function that copies the base tiny-random and changes its config."""
    count = iter(range(1000))

    def alter(change):
        folder = tmp_path / f"base-{next(count)}"
        shutil.copytree(find_bundled_base("tiny-random"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        return folder

    return alter


@pytest.mark.parametrize("change", CODE, ids=str)
def test_a_field_that_chooses_code_is_refused_by_name_at_any_depth(change):
    for config in (change, {"text_config": change}, {"a": [{"b": change}]}, {"id2label": change}):
        with pytest.raises(IntegrityError, match="nothing was loaded") as told:
            check_no_remote_code(config, "config.json")
        assert any(key in str(told.value) for key in change)


@pytest.mark.parametrize("config", HARMLESS, ids=str)
def test_built_in_choices_pass(config):
    check_no_remote_code(config, "config.json")


DEQUANTIZED = ("fp8", "mxfp4")


@pytest.mark.parametrize("method", DEQUANTIZED)
def test_methods_that_are_dequantized_have_known_settings_only(method):
    check_no_remote_code({"quantization_config": {"quant_method": method}}, "config.json")
    if method == "fp8":
        for change in ({"expert_dtype": "fp4"}, {"scale_fmt": "ue8m0"}, {"fmt": "int8"}, {"modules_to_convert": ["x"]}):
            with pytest.raises(UnavailableError, match="cannot be loaded"):
                check_no_remote_code({"quantization_config": {"quant_method": method} | change}, "config.json")


def test_only_bitsandbytes_of_all_other_methods_that_transformers_knows_is_loaded():
    for method in _methods():
        if method in DEQUANTIZED:
            continue
        with pytest.raises(UnavailableError, match="cannot be loaded"):
            check_no_remote_code({"text_config": {"quantization_config": {"quant_method": method}}}, "config.json")
        both = {"quantization_config": {"quant_method": method, "load_in_4bit": True}}
        if method == "bitsandbytes":
            check_no_remote_code(both, "config.json")
        else:
            with pytest.raises(UnavailableError, match="cannot be loaded"):
                check_no_remote_code(both, "config.json")
    for odd in ("torchao", [], {}, {"load_in_4bit": 1}, 1):
        with pytest.raises(UnavailableError, match="cannot be loaded"):
            check_no_remote_code({"quantization_config": odd}, "config.json")


@pytest.mark.parametrize(
    "names", ["lm_head", ["(a+)+$"], [".*"], [1], ["x"] * 6000, {"x": 1}], ids=lambda n: str(n)[:20]
)
def test_layers_left_out_of_quantisation_are_names_and_no_expressions(names):
    found = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    check_no_remote_code({"quantization_config": found | {"llm_int8_skip_modules": ["lm_head", "model.layers.0"]}}, "x")
    with pytest.raises(UnavailableError, match="list of layer names"):
        check_no_remote_code({"quantization_config": found | {"llm_int8_skip_modules": names}}, "x")


@pytest.fixture
def recipe(tmp_path):
    data = tmp_path / "data.jsonl"
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    data.write_text((json.dumps(row) + "\n") * 4)
    path = tmp_path / "recipe.yaml"
    path.write_text(f"base: {{name: BASE}}\ndata: {{train: {data}}}\noutput: {{directory: {tmp_path / 'runs'}}}\n")
    return path


def commands(folder, recipe, parcel):
    given = ["--set", f"base.name={folder}"]
    return {
        "chat": ["chat", str(folder)],
        "chat of a parcel": ["chat", str(parcel), "--base", str(folder)],
        "plan": ["plan", str(recipe), *given],
        "sft": ["sft", str(recipe), *given],
        "data": ["data", str(recipe), *given],
        "verify": ["verify", str(parcel), "--base", str(folder)],
        "merge": ["merge", str(parcel), "--base", str(folder), "--to", str(recipe.parent / "merged")],
    }


PARCEL = Path(__file__).parents[1] / "sharing" / "parcels" / "version-2.lorachat"


@pytest.mark.parametrize(
    "change", [CODE[0], {"quantization_config": {"quant_method": "torchao"}}], ids=["kernel", "method"]
)
def test_every_command_refuses_before_transformers_sees_the_config(change, altered, recipe, monkeypatch, capsys):
    import transformers

    seen = []
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", lambda *a, **k: seen.append(a))
    folder, word = altered(change), "quantized by torchao" if "quantization_config" in change else KERNEL
    for command, words in commands(folder, recipe, PARCEL).items():
        assert main(words) in (IntegrityError.exit_code, UnavailableError.exit_code), command
        told = capsys.readouterr()
        assert word in told.err + told.out, command
    assert not seen


FAKE = """
import pathlib
pathlib.Path({!r}).write_text("this was imported")
def get_kernel(*args, **kwargs):
    raise RuntimeError("a kernel was asked for")
"""


@pytest.mark.slow
def test_the_package_kernels_is_never_imported(altered, tmp_path):
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    site, mark = tmp_path / "site", tmp_path / "mark"
    (site / "kernels").mkdir(parents=True)
    (site / "kernels" / "__init__.py").write_text(FAKE.format(str(mark)))
    info = site / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    folder = altered({"_attn_implementation": KERNEL})
    code = f"""
import sys
sys.path[:0] = [{str(Path(lora_chat.__file__).parents[1])!r}, {str(site)!r}]
from lora_chat.system.library_settings import block_hub_code
block_hub_code()
from transformers import AutoConfig, AutoModelForCausalLM
try:  # without the block this imports it
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({str(folder)!r}))
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert "kernels" in done.stdout
    assert not mark.exists()


def test_a_loaded_config_that_chooses_code_is_refused(altered):
    folder = altered({"attribute_map": {"x": "_attn_implementation"}, "x": KERNEL})
    with pytest.raises(IntegrityError, match="_attn_implementation"):
        read_config(LocalBase("base", folder))


def test_adapter_in_a_base_folder_is_ignored_or_refused(altered, random_base):
    folder = altered({})
    other = random_base("gpt2")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(other)}))
    base = LocalBase("base", folder)
    assert read_config(base).model_type == "llama"
    assert load_meta_model(base).config.model_type == "llama"
    assert load_tokenizer(base).pad_token == "<|endoftext|>"  # the other's is the end of a turn
    precision = plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, False, 2))
    for step in (
        lambda: find_base(BaseSection(name=str(folder))),
        lambda: find_base_config(BaseSection(name=str(folder))),
        lambda: load_base_model(base, precision),
    ):
        with pytest.raises(IntegrityError, match="contains an adapter"):
            step()


def test_folder_with_only_an_adapter_is_refused(altered, random_base, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(random_base("gpt2"))}))
    for step in (find_base, lambda section: find_base_config(section)):
        with pytest.raises(UnavailableError, match="is an adapter, not a base"):
            step(BaseSection(name=str(alone)))


def test_verify_reports_no_match_for_a_refused_base(altered, capsys):
    assert main(["verify", str(PARCEL), "--base", str(altered({"rms_norm_eps": 0.5}))]) == IntegrityError.exit_code
    told = capsys.readouterr().out
    assert "FAILED  base" in told
    assert not any(line.startswith("ok") and "fits" in line for line in told.splitlines())
    assert "not checked: this is not the base of its training" in told


@pytest.mark.parametrize(
    "given", [["adapter.alpha=1e308"], ["adapter.alpha=.nan"], ["adapter.rank=1", "adapter.alpha=60000"]], ids=str
)
def test_a_recipe_with_an_alpha_that_overflows_is_refused(given, recipe, capsys):
    assert main(["plan", str(recipe), *(word for one in given for word in ("--set", one))]) == RecipeError.exit_code
    told = capsys.readouterr().err
    assert "alpha" in told
    assert "Traceback" not in told
    print(told)


@pytest.mark.parametrize("setting", [{"cache_implementation": "quantized"}, {"stop_strings": ["a"]}], ids=str)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_generation_settings_that_no_call_can_serve_are_refused(setting, name, altered):
    folder = altered({})
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(found | setting))
    with pytest.raises(UnavailableError, match=next(iter(setting))):
        find_base(BaseSection(name=str(folder)))
