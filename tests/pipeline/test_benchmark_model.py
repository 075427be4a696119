"""The benchmarked model is the base with fewer layers: the same class, the same settings."""

import json

import pytest

from lora_chat.models.architectures import ARCHITECTURES, find_architecture
from lora_chat.models.base_config import read_known_configs
from lora_chat.pipeline.machine_benchmark_worker import make_small_config, write_random_model
from tests.planning.shapes import ARCHITECTURES as PLANNED
from tests.planning.shapes import Widths, make_config

CHANGED = {"layer_types", "no_rope_layers", "intermediate_size", "activation_sparsity_pattern"} | {
    *("num_hidden_layers", "n_layer", "n_layers", "_name_or_path")
}


def read_config(fields, folder):
    from transformers import AutoConfig

    (folder / "config.json").write_text(json.dumps(fields))
    return AutoConfig.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("name", [spec.model_type for spec in ARCHITECTURES if spec.layer_family])
def test_small_config_has_the_class_and_settings_of_the_base(name, tmp_path):
    from transformers import AutoConfig

    full = AutoConfig.for_model(name)
    full = getattr(full, "text_config", full)  # the plan reads the part for the language model
    small = read_config(make_small_config(full.to_dict(), 2), tmp_path)
    assert type(small) is type(full)
    assert small.num_hidden_layers == 2
    before, after = full.to_dict(), small.to_dict()
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed <= CHANGED


@pytest.mark.parametrize("name", sorted(read_known_configs()))
def test_small_config_of_known_base_has_its_class(name, tmp_path):
    known = read_known_configs()[name]
    small = read_config(make_small_config(known, 3), tmp_path)
    assert small.model_type == known["model_type"]
    assert small.num_hidden_layers == 3


def test_layer_types_of_the_base_are_kept_for_the_first_layers():
    config = {"model_type": "gemma2", "num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"]}
    assert make_small_config(config, 2)["layer_types"] == ["a", "b"]
    assert "layer_types" not in make_small_config({"model_type": "mistral", "layer_types": None}, 2)


@pytest.mark.parametrize("name", PLANNED)
def test_random_model_has_the_class_of_the_base(name, tmp_path):
    from transformers import AutoModelForCausalLM

    config = make_config(name, Widths(64, 128, 4, 2, 16), 4, 256)
    expected = AutoModelForCausalLM.from_config(config)
    fields = json.loads(config.to_json_string(use_diff=False))
    write_random_model(fields, 2, tmp_path)
    small = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert type(small) is type(expected)
    layers = {type(module) for module in expected.modules()}
    assert {type(module) for module in small.modules()} == layers
    assert len(read_layers(small)) == 2
    assert find_architecture(small.config.model_type).layer_family


def read_layers(model):
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
