"""Adapters of multimodal bases open if their towers were not trained, under the names of every version."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import load_adapter
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.models.foreign.fit import fit_foreign_adapter
from lora_chat.system.hardware import Hardware
from tests.current_architectures import make_current_base

IDS = torch.arange(10, 40)[None]
OLD_REGEX = r"^(?!.*visual).*language_model\.model\.layers\.\d+\.self_attn\.(q_proj|v_proj)$"


@pytest.fixture(scope="module")
def base(cache_home, tmp_path_factory):
    return find_base(BaseSection(name=str(make_current_base("gemma3", tmp_path_factory.mktemp("gemma3") / "base"))))


@pytest.fixture(scope="module")
def load(base):
    """Return a function that loads the base with an adapter's folder, and computes logits."""

    def load(folder):
        precision = plan_precision(QuantizationSection(mode="none", dtype="float32"), Hardware("cpu", "", 0, False, 2))
        model = load_adapter(load_base_model(base, precision), fit_foreign_adapter(read_adapter(folder), base))
        with torch.no_grad():
            return model(input_ids=IDS).logits

    return load


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """Return the folder of an adapter that names layers of the tower too, and the logits in PEFT."""
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    model = AutoModelForImageTextToText.from_pretrained(base.folder, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "vision" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(folder, save_embedding_layers=False)
    with torch.no_grad():
        return folder, model(input_ids=IDS).logits


def change(adapter, folder, rename=lambda name: name, value=0.0, **settings):
    """Copy an adapter with other names and settings, and with a value in the matrices B of the tower."""
    folder.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in weights.items():
        if "vision" in name and "lora_B" in name:
            tensor += value
    weights = {rename(name): tensor for name, tensor in weights.items() if rename(name)}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_tower_without_training_is_left_out(adapter, load):
    folder, expected = adapter
    assert any("vision" in name for name in load_file(folder / "adapter_model.safetensors"))
    torch.testing.assert_close(load(folder), expected, rtol=1e-5, atol=1e-5)


def test_trained_tower_is_refused(adapter, load, tmp_path):
    with pytest.raises(IntegrityError, match="not a part of the text model"):
        load(change(adapter[0], tmp_path / "adapter", value=0.1))


def test_names_and_expression_of_an_older_version_open(adapter, load, tmp_path):
    def old(name):
        return None if "vision" in name else name.replace("model.language_model.", "language_model.model.")

    folder = change(adapter[0], tmp_path / "adapter", old, target_modules=OLD_REGEX)
    assert all("language_model.model." in name for name in load_file(folder / "adapter_model.safetensors"))
    torch.testing.assert_close(load(folder), adapter[1], rtol=1e-5, atol=1e-5)
