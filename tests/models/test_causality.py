"""A base whose tokens see later ones is refused: such a run ends with a low loss and a model that cannot reply."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_chat.errors import UnavailableError
from lora_chat.models.base_model import LocalBase, load_meta_model
from lora_chat.models.causality import check_causal_config, check_causality

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IDS = list(range(5, 45))


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "electra"])
def test_an_encoder_is_refused_by_its_config(model_type):
    with pytest.raises(UnavailableError, match=f"my-base \\({model_type}\\) is an encoder"):
        check_causal_config(AutoConfig.for_model(model_type), "my-base")


@pytest.mark.parametrize("model_type", ["bart", "whisper", "marian"])
def test_a_model_with_an_encoder_and_a_decoder_is_refused(model_type):
    with pytest.raises(UnavailableError, match="has an encoder and a decoder"):
        check_causal_config(AutoConfig.for_model(model_type), "my-base")


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3", "mamba", "modernbert-decoder", "gemma3"])
def test_decoders_are_accepted(model_type):
    check_causal_config(AutoConfig.for_model(model_type), "my-base")


def test_an_encoder_trained_as_a_decoder_is_accepted():
    check_causal_config(AutoConfig.for_model("bert", is_decoder=True), "my-base")


def test_the_folder_of_an_encoder_is_refused_before_weights_load(tmp_path):
    AutoConfig.for_model("bert", **SIZES).save_pretrained(tmp_path)
    with pytest.raises(UnavailableError, match="is an encoder"):
        load_meta_model(LocalBase("my-base", tmp_path))


def make_model(model_type, **settings):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **settings))


def test_tokens_that_see_later_ones_are_found_on_the_model():
    model = make_model("bert").eval()
    with pytest.raises(UnavailableError, match="not a causal language model: other tokens at the end change"):
        check_causality(model, IDS, "my-base")
    assert model.training is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_causal_model_passes(dtype):
    model = make_model("llama").to(dtype).train()
    check_causality(model, IDS, "my-base")
    assert model.training is True


def test_one_token_is_too_few_for_the_check():
    check_causality(make_model("bert"), IDS[:1], "my-base")
