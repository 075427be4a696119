"""LoRA is put on the linear layers of the text model only, for architectures of every kind."""

import pytest
import torch
from transformers import AutoConfig

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.errors import RecipeError, UnavailableError
from lora_chat.models.adapter import attach_adapter, check_adapter_attaches
from lora_chat.models.architectures import ARCHITECTURES
from lora_chat.models.auto_class import find_auto_class
from lora_chat.models.text_layers import describe_left_out, find_text_layers, list_unquantized_layers
from tests.current_architectures import MULTIMODAL, TEXT, make_config

TOWERS = ("vision", "visual", "audio", "projector", "embed_vision")


def make_meta_model(name):
    config = make_config(name, vocab_size=259, bos_token_id=None, eos_token_id=2, pad_token_id=0)
    with torch.device("meta"):
        return find_auto_class(config, name).from_config(config)


def trained_modules(model):
    return {
        name.split(".lora_")[0].removeprefix("base_model.model.")
        for name, _ in model.named_parameters()
        if ".lora_A." in name
    }


@pytest.mark.parametrize("name", MULTIMODAL)
def test_towers_have_no_adapter(name):
    modules = trained_modules(attach_adapter(make_meta_model(name), AdapterSection(rank=2)))
    assert any(module.endswith("q_proj") for module in modules)
    assert not [module for module in modules if any(tower in module for tower in TOWERS)]


def test_towers_of_a_model_without_a_text_part_have_no_adapter():
    class Model(torch.nn.Module):
        config = AutoConfig.for_model("llama")

        def __init__(self):
            super().__init__()
            self.audio_embed = torch.nn.Sequential(torch.nn.Linear(4, 4))
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4))

        def get_output_embeddings(self):
            return None

    assert find_text_layers(Model()).suitable == ("layers.0",)


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_named_modules_are_limited_to_the_text_model(name):
    modules = trained_modules(attach_adapter(make_meta_model(name), AdapterSection(rank=2, target_modules=("q_proj",))))
    assert len(modules) == 2
    assert all("language_model" in module for module in modules)


def test_module_that_only_a_tower_has_is_refused():
    with pytest.raises(RecipeError, match="fc1 cannot have an adapter, because it is not a part of the text model"):
        attach_adapter(make_meta_model("gemma3"), AdapterSection(target_modules=("q_proj", "fc1")))


@pytest.mark.parametrize("name", TEXT)
def test_lora_can_be_put_on_every_architecture(name):
    check_adapter_attaches(make_meta_model(name), AdapterSection(rank=2))


def test_layers_of_the_table_are_those_that_peft_refuses():
    from peft import LoraConfig, get_peft_model

    for spec in ARCHITECTURES:
        for layer in spec.layers_without_lora:
            with pytest.raises(ValueError, match="incompatible"):
                get_peft_model(make_meta_model(spec.model_type), LoraConfig(target_modules=[layer]))


def test_layers_whose_weights_the_code_reads_have_no_adapter_and_stay_in_16_bits():
    layers = find_text_layers(make_meta_model("jamba"))
    assert [name.split(".")[-1] for name in layers.unsuitable] == ["dt_proj"]
    assert list_unquantized_layers(make_meta_model("jamba")) == list(layers.unsuitable)


def test_router_with_its_own_forward_has_no_adapter():
    layers = find_text_layers(make_meta_model("llama4_text"))
    assert {name.split(".")[-1] for name in layers.unsuitable} == {"router"}


def test_layers_with_shared_weights_have_no_adapter():
    model = make_meta_model("zamba2")
    layers = find_text_layers(model)
    shared = [name for name in layers.unsuitable if "shared_transformer" in name]
    assert shared
    assert not [name for name in layers.suitable if "shared_transformer" in name]
    assert "several layers share its weights" in describe_left_out(layers)


def test_targets_of_a_usual_base_are_left_to_peft():
    layers = find_text_layers(make_meta_model("granite"))
    assert layers.select("all-linear") == "all-linear"
    assert layers.select(("q_proj", "v_proj")) == ("q_proj", "v_proj")
    assert describe_left_out(layers) is None


def test_auto_classes_of_the_table_are_those_of_the_library():
    for spec in ARCHITECTURES:
        assert find_auto_class(AutoConfig.for_model(spec.model_type), "base").__name__ == spec.auto_class


def test_base_without_a_language_model_is_refused():
    with pytest.raises(UnavailableError, match="no language model"):
        find_auto_class(AutoConfig.for_model("vit"), "the base")
