"""What is loaded of a base and what shapes it is compared; the rest is listed as harmless, and loading shows it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lora_chat.errors import BaseUnavailableError, IntegrityError
from lora_chat.models.base_model import FoundBase, load_base_model, load_tokenizer
from lora_chat.models.base_settings import HARMLESS
from lora_chat.models.embedded import find_embedded
from lora_chat.models.generation import generate_replies
from lora_chat.models.identity import differences, identify
from lora_chat.models.stop_ids import read_stop_ids
from lora_chat.planning.hardware import Hardware
from lora_chat.planning.plan import make_precision
from lora_chat.planning.recipe import QuantizationSection

TEXTS = ["It's 7:30 pm.\n\n Ça va? 你好 \U0001f642", "Colour of  snow , 48 !", "<|im_start|>user\nhi<|im_end|> x", ""]


def identity_of(folder):
    base = FoundBase("base", Path(folder))
    return identify(base, load_tokenizer(base))


def refused(trained, folder):
    """Whether something in a folder is told from what was trained on, or cannot be loaded at all."""
    try:
        return bool(differences(trained, identity_of(folder)))
    except (IntegrityError, BaseUnavailableError):
        return True


def behaviour(folder):
    """Everything that a base does for us: ids, decoded text, prompts, stops, logits, replies."""
    import torch

    base = FoundBase("base", Path(folder))
    tokenizer = load_tokenizer(base)
    precision = make_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, False, 2))
    model = load_base_model(base, precision).eval()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    stops = read_stop_ids(base, tokenizer)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(range(5, 45))])).logits.float()
    replies = generate_replies(model, tokenizer, [ids[0], ids[1]], stops, 6)
    decoded = [(tokenizer.decode(one), tokenizer.decode(one, skip_special_tokens=True)) for one in ids]
    return ids, decoded, chat, stops, logits.numpy().tobytes(), replies


@pytest.fixture(scope="module")
def base(cache_home, tmp_path_factory):
    """The base tiny-random with a tokenizer that uses every part of a tokenizer.json, as a stranger's folder."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    shutil.copytree(find_embedded("tiny-random", print), folder)
    for name in ("sha256.json", "complete.json"):
        (folder / name).unlink()
    found = json.loads((folder / "tokenizer.json").read_text())
    found["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}],
    }
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    found["model"]["merges"] = [["o", "w"]]
    found["model"]["vocab"]["ow"] = 258
    found["model"]["vocab"] = {token: n for token, n in found["model"]["vocab"].items() if n < 258 or token == "ow"}
    (folder / "tokenizer.json").write_text(json.dumps(found))
    return folder


@pytest.fixture(scope="module")
def trained(base):
    return identity_of(base)


@pytest.fixture(scope="module")
def true_behaviour(base):
    return behaviour(base)


@pytest.fixture
def altered(base, tmp_path):
    """A function that copies the base and changes one of its JSON files; the weights are the same file."""
    count = iter(range(10_000))

    def alter(name=None, change=lambda found: None, source=base):
        folder = tmp_path / f"base-{next(count)}"
        shutil.copytree(source, folder, copy_function=os.link)
        if name:
            path = folder / name
            found = json.loads(path.read_text()) if path.is_file() else {}
            change(found)
            path.unlink(missing_ok=True)
            path.write_text(json.dumps(found))
        return folder

    return alter


def other(value):
    """Return other values that may stand in a field's place, of its kind and of none."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, None]
    if isinstance(value, str):
        return [value + "x", None]
    if isinstance(value, list):
        return [[*value, value[0]] if value else ["x"], []]
    if isinstance(value, dict):
        return [{**value, "x": 1}]
    return [3, "x", True]


MORE = {
    "config.json": {
        "_attn_implementation": "eager",
        "attention_bias": True,
        "attn_implementation": "eager",
        "attribute_map": {"hidden_act": "x"},
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "configuration_files": ["config.4.0.0.json"],
        "dtype": "float32",
        "fusion_config": {"x": True},
        "layer_types": ["sliding_attention", "full_attention"],
        "name_or_path": "x",
        "num_labels": 7,
        "per_layer_config": {"0": {"rms_norm_eps": 1.0}},
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "repetition_penalty": 2.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_theta": 17.0,
        "sliding_window": 4,
        "text_config": {"transformers_weights": "x.safetensors"},
        "tie_last_hidden_states": True,
        "tokenizer_class": "GPT2Tokenizer",
        "torch_dtype": "float32",
        "transformers_version": "4.0.0",
        "transformers_weights": "model.safetensors",
        "use_cache": False,
        "_name_or_path": "mistralai/x",
    },
    "tokenizer_config.json": {
        "add_bos_token": True,
        "add_eos_token": True,
        "add_prefix_space": True,
        "added_tokens_decoder": {"2": {"content": "<|im_end|>", "lstrip": True, "special": True}},
        "additional_special_tokens": ["<x>"],
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
        "bos_token": "<|im_start|>",
        "chat_template": "{{ messages }}",
        "clean_up_tokenization_spaces": True,
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        "errors": "ignore",
        "eos_token": "<|endoftext|>",
        "fast_tokenizer_files": ["tokenizer.4.0.0.json"],
        "image_token": "<|im_end|>",
        "is_local": False,
        "legacy": False,
        "local_files_only": False,
        "model_input_names": ["input_ids"],
        "name_or_path": "mistralai/x",
        "pad_token": "<|im_end|>",
        "padding_side": "left",
        "split_special_tokens": True,
        "tokenizer_class": "GPT2Tokenizer",
        "tokenizer_file": "/etc/passwd",
        "truncation_side": "left",
        "unk_token": "<unk>",
        "vocab_file": "/etc/passwd",
    },
    "special_tokens_map.json": {
        "additional_special_tokens": ["<x>"],
        "eos_token": "<|endoftext|>",
        "extra_special_tokens": ["<x>"],
        "pad_token": {"content": "<|im_end|>", "lstrip": True},
        "unk_token": "<unk>",
        "split_special_tokens": True,
    },
}
"""Fields that the base does not have, file by file."""


def single_changes(folder, name):
    """Return (field, change) for every field of a file taken out or given another value, and for more fields."""
    path = folder / name
    found = json.loads(path.read_text()) if path.is_file() else {}
    changes = [(key, lambda now, key=key: now.pop(key)) for key in found]
    for key, value in found.items():
        changes += [(key, lambda now, key=key, new=new: now.update({key: new})) for new in other(value)]
    for key, new in MORE.get(name, {}).items():
        if found.get(key) != new:
            changes.append((key, lambda now, key=key, new=new: now.update({key: new})))
    return changes


def check_all(changes, name, altered, trained, true_behaviour):
    """Assert that each change is refused, or is harmless by the table and by loading; return the harmless fields."""
    passed = set()
    for field, change in changes:
        folder = altered(name, change)
        if not refused(trained, folder):
            assert field in HARMLESS[name], f"{name}: {field} passes and is not listed"
            try:
                now = behaviour(folder)
            except (IntegrityError, BaseUnavailableError):  # what cannot be loaded passes for nothing
                continue
            assert now == true_behaviour, f"{name}: {field} is listed as harmless"
            passed.add(field)
    return passed


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_changed_field_is_refused_or_harmless(name, base, altered, trained, true_behaviour):
    passed = check_all(single_changes(base, name), name, altered, trained, true_behaviour)
    if name == "config.json":
        assert passed == set(HARMLESS[name])


def test_a_changed_field_of_the_generation_config_is_refused_or_harmless(base, altered, trained, true_behaviour):
    from transformers import GenerationConfig

    name = "generation_config.json"
    known = {**GenerationConfig().to_dict(), "do_sample": True, "max_length": 3, "repetition_penalty": 9.0, "x": 1}
    changes = single_changes(base, name)
    for key, value in known.items():
        changes += [(key, lambda now, key=key, new=new: now.update({key: new})) for new in other(value)[:1]]
    assert check_all(changes, name, altered, trained, true_behaviour) == set(HARMLESS[name])


def leaves(value, path=()):
    """Return the path of every value inside of a value; of a long vocabulary only its ends."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) < 50 else [keys[0], keys[-1]]:
            found += leaves(value[key], (*path, key))
    return found


def test_a_changed_field_of_the_tokenizer_is_refused_or_harmless(base, altered, trained, true_behaviour):
    name = "tokenizer.json"
    whole = json.loads((base / name).read_text())
    loaded = load_tokenizer(FoundBase("base", base)).backend_tokenizer.to_str()
    for path in leaves(whole):
        inner = whole
        for key in path:
            inner = inner[key]
        for new in other(inner):

            def change(now, path=path, new=new):
                for key in path[:-1]:
                    now = now[key]
                now[path[-1]] = new

            folder = altered(name, change)
            if not refused(trained, folder):
                assert load_tokenizer(FoundBase("base", folder)).backend_tokenizer.to_str() == loaded, path
                assert behaviour(folder) == true_behaviour, path


PARTS = {
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 20},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    },
}


@pytest.mark.parametrize("part", PARTS)
def test_a_replaced_part_of_the_tokenizer_is_refused_by_name_or_harmless(part, altered, trained, true_behaviour):
    folder = altered("tokenizer.json", lambda found: found.update({part: PARTS[part]}))
    changed = differences(trained, identity_of(folder))
    if part in HARMLESS["tokenizer.json"] and not changed:
        assert behaviour(folder) == true_behaviour
    else:
        assert part in " ".join(changed) or part == "padding"
