"""A merged folder has the base's own files, and config fields that Transformers 4 and other programs read."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from lora_chat.config.recipe import BaseSection
from lora_chat.errors import UnavailableError
from lora_chat.export.merge import write_merged_model
from lora_chat.export.merged_config import complete_config
from lora_chat.export.merged_generation import select_valid_settings
from lora_chat.models.base_model import LocalBase, find_base, load_tokenizer
from tests.export.test_merge import open_blend

SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 64}


def edit(path, **fields):
    found = json.loads(path.read_text()) if path.exists() else {}
    found |= fields
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def complete(config, folder, base_fields=None):
    """Return the completed config.json of a config, on a base with `base_fields`."""
    for name in ("merged", "base"):
        (folder / name).mkdir()
    config.save_pretrained(folder / "merged")
    if base_fields is not None:
        (folder / "base" / "config.json").write_text(json.dumps(base_fields))
    complete_config(folder / "merged", folder / "base", config)
    loaded = AutoConfig.from_pretrained(folder / "merged").to_dict()
    rope = config.get_text_config().rope_parameters
    found = (loaded.get("text_config") or loaded)["rope_parameters"]
    assert {name: value for name, value in found.items() if name != "type"} == rope
    return json.loads((folder / "merged" / "config.json").read_text())


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
LONGROPE = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize("scaling", [YARN, LLAMA3, {"rope_type": "linear", "factor": 2.0}, None])
def test_writes_the_earlier_names_of_rope_settings(tmp_path, scaling):
    rope = {**(scaling or {"rope_type": "default"}), "rope_theta": 123456.0}
    written = complete(LlamaConfig(**SHAPE, rope_parameters=dict(rope)), tmp_path)
    assert (written["rope_theta"], written["rope_scaling"]) == (123456.0, scaling)


def test_writes_the_earlier_names_of_each_family(tmp_path):
    def written(name, **settings):
        (tmp_path / name).mkdir()
        return complete(AutoConfig.for_model(name, **SHAPE, pad_token_id=None, **settings), tmp_path / name)

    rope = {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}
    assert written("stablelm", rope_parameters=dict(rope))["partial_rotary_factor"] == 0.5
    neox = written("gpt_neox", rope_parameters=dict(rope))
    assert (neox["rotary_emb_base"], neox["rotary_pct"]) == (3e4, 0.5)
    gemma_rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1234.0},
    }
    layers = ["sliding_attention", "full_attention"]
    gemma = written("gemma3_text", rope_parameters=gemma_rope, layer_types=layers)
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"]) == (1e6, 1234.0)
    assert gemma["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    long_rope = {"rope_type": "longrope", **LONGROPE, "rope_theta": 5e4}
    phi = written("phi3", rope_parameters=long_rope, original_max_position_embeddings=32)
    assert written("qwen3_moe", num_experts=5, rope_parameters=dict(rope))["num_experts"] == 5
    assert phi["rope_scaling"] == {"type": "longrope", **LONGROPE}  # Transformers 4 refuses other keys


def test_completes_the_config_of_a_text_model_inside(tmp_path):
    text = {**SHAPE, "model_type": "mistral", "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}
    written = complete(AutoConfig.for_model("mistral3", text_config=text), tmp_path)
    assert written["text_config"]["rope_theta"] == 7e4


def test_keeps_fields_of_the_base_that_change_nothing(tmp_path):
    base = {
        "model_type": "llama",
        **SHAPE,
        "rope_theta": 5e5,
        "torch_dtype": "float16",
        "auto_map": {"AutoModel": "x.X"},
    }
    base |= {"rope_scaling": {"type": "linear", "factor": 2.0}, "transformers_version": "4.40.0", "temperature": 0.7}
    base |= {"vocab_size": 9, "quantization_config": {"quant_method": "awq"}, "our_note": "kept", "use_kernels": None}
    config = LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    config.dtype, config.our_note = "bfloat16", "kept"
    written = complete(config, tmp_path, base)
    assert written["rope_theta"] == 5e5
    assert written["transformers_version"] == "4.40.0"
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    assert written["vocab_size"] == config.vocab_size  # the merged model's, not the base's
    assert not {"auto_map", "quantization_config", "temperature"} & written.keys()


def test_writes_layer_types_that_transformers_4_knows(tmp_path):
    config = AutoConfig.for_model("granitemoehybrid", **SHAPE, layer_types=["mamba", "attention"])
    assert config.layer_types == ["linear_attention", "full_attention"]
    config.save_pretrained(tmp_path)
    complete_config(tmp_path, tmp_path / "none", config)
    assert json.loads((tmp_path / "config.json").read_text())["layer_types"] == ["mamba", "attention"]


GREEDY = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "top_k": 20}


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({**GREEDY, "bos_token_id": 1}, {"bos_token_id"}),  # Vicuna, Llama 2
        ({**GREEDY, "do_sample": True, "repetition_penalty": 1.1}, {*GREEDY, "repetition_penalty"}),
        ({"temperature": 0.7, "eos_token_id": [1, 2]}, {"eos_token_id"}),
        ({"do_sample": True, "temperature": 0.0, "top_p": 0.5}, set()),
        ({"do_sample": True, "temperature": "hot", "top_k": 5, "num_beams": "x"}, {"do_sample", "top_k"}),
        ({"num_beams": 1, "length_penalty": 0.5, "early_stopping": True}, {"num_beams"}),
        ({"num_beams": 2, "num_return_sequences": 4}, {"num_beams"}),
        ({"max_new_tokens": -5, "bos_token_id": 1}, {"bos_token_id"}),
        ({"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}, {"repetition_penalty", "no_repeat_ngram_size"}),
    ],
)
def test_drops_generation_settings_that_contradict(settings, kept):
    assert select_valid_settings(settings).keys() == kept


@pytest.fixture(scope="module")
def odd_base(random_base, make_adapter, tmp_path_factory):
    """Return a base with an invalid generation config, a pad token without an embedding and files of a processor."""
    folder = tmp_path_factory.mktemp("odd") / "base"
    shutil.copytree(random_base("llama", 8.0), folder)
    edit(folder / "generation_config.json", **GREEDY, repetition_penalty=5.0)
    edit(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 123456.0})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    edit(folder / "preprocessor_config.json", auto_map={"AutoProcessor": "evil.Evil"}, size=28)
    edit(folder / "processor_config.json", patch=14)
    edit(folder / "chat_template.json", chat_template="{{ 'other' }}")
    (folder / "tokenizer.model").write_bytes(b"\x0a\x01")
    (folder / "evil.py").write_text("raise SystemExit")
    return folder


def test_merged_folder_has_the_files_of_its_base(odd_base, make_adapter, tmp_path):
    _, precision = make_adapter(odd_base, tmp_path / "adapter")
    blend = open_blend(precision, tmp_path / "adapter")
    merged = tmp_path / "merged"
    write_merged_model(blend, merged)
    for name in ("tokenizer.json", "tokenizer.model", "processor_config.json"):
        assert (merged / name).read_bytes() == (odd_base / name).read_bytes()
    assert not (merged / "evil.py").exists()
    assert json.loads((merged / "preprocessor_config.json").read_text()) == {"size": 28}
    template = blend.tokenizer.chat_template
    assert json.loads((merged / "chat_template.json").read_text()) == {"chat_template": template}
    settings = json.loads((merged / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # TokenizersBackend is unknown to Transformers 4
    assert isinstance(settings.get("extra_special_tokens", {}), dict)
    assert settings["pad_token"] == settings["eos_token"]
    generation = json.loads((merged / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(blend.stop_ids)
    assert generation["repetition_penalty"] == 5.0
    assert "temperature" not in generation
    assert json.loads((merged / "config.json").read_text())["rope_theta"] == 123456.0
    found = load_tokenizer(find_base(BaseSection(name=str(merged))))
    assert found.special_tokens_map == blend.tokenizer.special_tokens_map


def test_pad_token_without_embedding_is_replaced_by_eos(odd_base, messages):
    tokenizer = load_tokenizer(LocalBase("base", odd_base))
    assert tokenizer.pad_token == tokenizer.eos_token
    assert "[PAD] of base has no embedding" in messages[0]


def test_refuses_a_tokenizer_that_needs_more_embeddings(odd_base, tmp_path):
    folder = shutil.copytree(odd_base, tmp_path / "base")
    edit(folder / "config.json", vocab_size=100)
    with pytest.raises(UnavailableError, match="beyond the 100 embeddings"):
        load_tokenizer(LocalBase("base", folder))


def test_takes_a_missing_eos_token_from_the_config(odd_base, tmp_path):
    folder = shutil.copytree(odd_base, tmp_path / "base")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    assert load_tokenizer(LocalBase("base", folder)).eos_token_id == 2
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    with pytest.raises(UnavailableError, match=r"no end-of-sequence token.*Fix"):
        load_tokenizer(LocalBase("base", folder))
