"""An adapter's folder is validated before it is used."""

import json
import shutil
from typing import get_args

import pytest
import torch
from peft import LoraConfig

from lora_chat.config.lora_variants import LORA_VARIANTS, LoraVariantName
from lora_chat.config.recipe import AdapterSection
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import load_adapter
from lora_chat.models.adapter_checks import check_adapter_weights
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import load_base_model
from lora_chat.pipeline.open_adapter import resolve_adapter


def test_refuses_an_adapter_of_another_base(random_base, make_adapter, tmp_path):
    make_adapter(random_base("llama"), tmp_path / "adapter", "none")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(random_base("qwen2"))
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="another base: other weights of the base"):
        resolve_adapter(read_adapter(tmp_path / "adapter"))


def test_refuses_missing_unknown_non_finite_and_misshapen_weights(random_base, make_adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    base, precision = make_adapter(random_base("llama"), tmp_path / "adapter", "none")
    good = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(iter(good))
    embedding = {"base_model.model.model.embed_tokens.weight": torch.zeros(259, 64)}
    cases = {
        "1 weights missing": {k: v for k, v in good.items() if k != name},
        "1 unknown": {**good, **embedding},
        "non-finite": {**good, name: good[name] * float("nan")},
        "is \\(": {**good, name: good[name][:-1].contiguous()},
    }
    for message, weights in cases.items():
        shutil.copytree(tmp_path / "adapter", tmp_path / "bad")
        save_file(weights, tmp_path / "bad" / "adapter_model.safetensors")
        with pytest.raises(IntegrityError, match=message):
            load_adapter(load_base_model(base, precision), read_adapter(tmp_path / "bad"))
        shutil.rmtree(tmp_path / "bad")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 10**8),
        ("r", "16"),
        ("target_modules", "(a+)+$"),
        ("rank_pattern", {"(a+)+$": 8}),
        ("modules_to_save", ["embed_tokens"]),
        ("peft_type", "PROMPT_TUNING"),
        ("layer_replication", [[0, 2]]),
        ("bias", "all"),
    ],
)
def test_refuses_unsupported_settings(random_base, make_adapter, tmp_path, field, value):
    base, precision = make_adapter(random_base("llama"), tmp_path / "adapter", "none")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(IntegrityError):
        load_adapter(load_base_model(base, precision), read_adapter(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"lora_alpha": alpha}, "alpha") for alpha in (1e308, 65537, 1e-9, 0, -1, float("nan"), float("inf"))),
        ({"lora_alpha": 60_000, "r": 4}, "scales the update"),
        ({"lora_alpha": 1e-4, "r": 1024}, "scales the update"),
        *(({"r": rank}, "rank") for rank in (0, -1, 1025, 10**30, 2.5)),
        *(({"lora_dropout": dropout}, "dropout") for dropout in (1.0, -0.1, float("nan"), 1e308)),
        ({"lora_alpha": 60_000, "r": 16, "use_rslora": True}, "scales the update"),
    ],
    ids=str,
)
def test_refuses_settings_that_make_outputs_overflow(change, message):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    LoraSettings.from_peft(config, "it", {})
    with pytest.raises(IntegrityError, match=message):
        LoraSettings.from_peft(config | change, "it", {})


@pytest.mark.parametrize("value", [1e5, -1e38, float("inf"), float("nan")])
def test_refuses_values_that_make_outputs_overflow(value):
    weights = {"a": torch.tensor([[0.1, 9999.0]])}
    check_adapter_weights(weights, weights, "it")
    with pytest.raises(IntegrityError, match=r"overflow|non-finite"):
        check_adapter_weights({"a": torch.tensor([[0.1, value]])}, weights, "it")


PEFT_DEFAULTS = LoraConfig().to_dict()


@pytest.mark.parametrize("variant", LORA_VARIANTS, ids=lambda variant: variant.name)
def test_settings_survive_conversion_to_peft_and_back(variant):
    section = AdapterSection(rank=4, alpha=3.5, dropout=0.25, target_modules=("b", "a"), variant=variant.name)
    settings = LoraSettings.from_section(section)
    saved = LoraConfig(task_type="CAUSAL_LM", **settings.to_peft()).to_dict()
    saved["target_modules"] = sorted(saved["target_modules"])
    read = LoraSettings.from_peft(saved, "it", PEFT_DEFAULTS)
    assert read == settings == LoraSettings.from_peft(settings.to_peft_file("base", None), "it", {"bias": "none"})
    assert read.variant == variant
    assert read.to_section() == section.model_copy(update={"target_modules": ("a", "b")})


def test_recipes_offer_all_variants_of_the_table():
    assert get_args(LoraVariantName) == tuple(variant.name for variant in LORA_VARIANTS)


def test_scale_in_alpha_keeps_the_function_of_rslora():
    settings = LoraSettings.from_section(AdapterSection(rank=16, alpha=32, variant="rslora"))
    plain = settings.with_scale_in_alpha()
    assert (plain.variant.name, plain.to_section().scale) == ("lora", settings.to_section().scale)
    assert plain.with_scale_in_alpha() == plain


def test_an_adapter_with_two_variants_keeps_both():
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    both = LoraSettings.from_peft(config | {"use_rslora": True, "use_dora": True}, "it", {})
    assert both.variant.name == "dora"
    assert both.to_peft()["use_rslora"] is both.to_peft()["use_dora"] is True
