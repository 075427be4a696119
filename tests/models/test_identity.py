"""Identities cover everything that changes a base. Other fields are listed as harmless, and loading proves it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import QuantizationSection
from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.inference.generation import generate_replies
from lora_chat.models.base_model import LocalBase, load_base_model, load_tokenizer
from lora_chat.models.base_settings import IGNORED_FIELDS
from lora_chat.models.bundled import find_bundled_base
from lora_chat.models.identity import Identity, compute_identity, list_identity_differences
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.system.hardware import Hardware

pytestmark = pytest.mark.slow

ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
TEXTS = ["It's 7:30 pm.\n\n Ça va? 你好 \U0001f642", "Colour of  snow , 48 !", "<|im_start|>user\nhi<|im_end|> x", ""]


def identity_of(folder):
    base = LocalBase("base", Path(folder))
    return compute_identity(base, load_tokenizer(base))


def refused(trained, folder, *, exact=True):
    """Return whether a folder differs from the base of training, or cannot be loaded."""
    try:
        base = None if exact else LocalBase("base", Path(folder))
        return bool(list_identity_differences(trained, identity_of(folder), base))
    except (IntegrityError, UnavailableError):
        return True


def behaviour(folder):
    """Return everything that a base computes: ids, decoded text, prompts, stop ids, logits, replies."""
    import torch

    base = LocalBase("base", Path(folder))
    tokenizer = load_tokenizer(base)
    precision = plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, False, 2))
    model = load_base_model(base, precision).eval()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    asked = [{"role": "user", "content": "hi"}]
    chat = tokenizer.chat_template and tokenizer.apply_chat_template(asked, tokenize=False)
    stops = read_stop_ids(base, tokenizer)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(range(5, 45))])).logits.float()
    replies = generate_replies(model, tokenizer, [ids[0], ids[1]], stops, 6)
    decoded = [(tokenizer.decode(row), tokenizer.decode(row, skip_special_tokens=True)) for row in ids]
    return ids, decoded, chat, stops, logits.numpy().tobytes(), replies


@pytest.fixture(scope="module")
def base(cache_home, tmp_path_factory):
    """The base tiny-random as an untrusted folder, with a tokenizer that uses every part of a tokenizer.json."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    shutil.copytree(find_bundled_base("tiny-random"), folder)
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
    """Return other values for a field, of the same type and null."""
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
"""Fields that the base does not have, by file."""


def single_changes(folder, name):
    """Return (field, change) for every field of a file, removed or with another value, and for additional fields."""
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
    """Assert that each change is refused or proven harmless by the table and by loading. Return the harmless fields."""
    passed = set()
    for field, change in changes:
        folder = altered(name, change)
        if not refused(trained, folder):
            assert field in IGNORED_FIELDS[name], f"{name}: {field} passes and is not listed"
            try:
                now = behaviour(folder)
            except (IntegrityError, UnavailableError):  # a base that cannot be loaded proves nothing
                continue
            assert now == true_behaviour, f"{name}: {field} is listed as harmless"
            passed.add(field)
        elif not refused(trained, folder, exact=False):
            assert behaviour(folder) == true_behaviour, f"{name}: {field} is taken for a default"
    return passed


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_refuses_a_changed_field_unless_harmless(name, base, altered, trained, true_behaviour):
    passed = check_all(single_changes(base, name), name, altered, trained, true_behaviour)
    if name == "config.json":
        assert passed == set(IGNORED_FIELDS[name])


def test_refuses_a_changed_generation_field_unless_harmless(base, altered, trained, true_behaviour):
    from transformers import GenerationConfig

    name = "generation_config.json"
    known = {**GenerationConfig().to_dict(), "do_sample": True, "max_length": 3, "repetition_penalty": 9.0, "x": 1}
    changes = single_changes(base, name)
    for key, value in known.items():
        changes += [(key, lambda now, key=key, new=new: now.update({key: new})) for new in other(value)[:1]]
    assert check_all(changes, name, altered, trained, true_behaviour) == set(IGNORED_FIELDS[name])


def leaves(value, path=()):
    """Return the path of every value inside of a value, but only the ends of a long vocabulary."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) < 50 else [keys[0], keys[-1]]:
            found += leaves(value[key], (*path, key))
    return found


def test_refuses_a_changed_tokenizer_field_unless_harmless(base, altered, trained, true_behaviour):
    name = "tokenizer.json"
    whole = json.loads((base / name).read_text())
    loaded = load_tokenizer(LocalBase("base", base)).backend_tokenizer.to_str()
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
                assert load_tokenizer(LocalBase("base", folder)).backend_tokenizer.to_str() == loaded, path
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
def test_names_a_replaced_part_of_the_tokenizer_unless_harmless(part, altered, trained, true_behaviour):
    folder = altered("tokenizer.json", lambda found: found.update({part: PARTS[part]}))
    changed = list_identity_differences(trained, identity_of(folder))
    if part in IGNORED_FIELDS["tokenizer.json"] and not changed:
        assert behaviour(folder) == true_behaviour
    else:
        assert part in " ".join(changed) or part == "padding"


def noise(source, to):
    """Write weights of the same names and shapes with other values."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1)
    weights = {name: torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in load_file(source).items()}
    to.parent.mkdir(exist_ok=True)
    save_file(weights, to, metadata={"format": "pt"})


ADDED = {
    "adapter_config.json": "an adapter",
    "adapter_model.bin": "an adapter",
    "adapter_model.safetensors": "an adapter",
    "adapter_model.safetensors.index.json": "an adapter",
    "shard-00001-model-00001-of-00001.safetensors": "a distributed checkpoint",
    "model-00001-of-00002.safetensors": "weights of the base",
    "consolidated.safetensors": "weights of the base",
}


@pytest.mark.parametrize("name", ADDED)
def test_names_an_added_file_that_changes_the_loaded_weights(name, base, altered, trained):
    folder = altered()
    if name.endswith(".safetensors"):
        noise(base / "model.safetensors", folder / name)
    else:
        (folder / name).write_text("{}")
    try:
        message = " ".join(list_identity_differences(trained, identity_of(folder)))
    except IntegrityError as error:
        message = str(error)
        assert name in message
        with pytest.raises(IntegrityError, match=ADDED[name]):  # without an identity too
            behaviour(folder)
    assert ADDED[name] in message


NOT_OPENED = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.safetensors.index.json",
    "model.fp16.safetensors/x",
    "sub/model.safetensors",
    "original/consolidated.00.pth",
    "modeling_evil.py",
    "tokenization_evil.py",
    "custom_generate/generate.py",
    "config.4.0.0.json",
    "tokenizer.4.0.0.json",
    "training_args.bin",
    "README.md",
    "model.gguf",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)


@pytest.mark.parametrize("name", NOT_OPENED)
def test_ignores_files_that_are_not_opened(name, altered, trained, true_behaviour):
    folder = altered()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}" if name.endswith(".json") else "raise SystemExit('this was run')")
    if not refused(trained, folder):
        assert behaviour(folder) == true_behaviour


def sharded(folder, *, inside=""):
    """Replace a base's weights by two shards and an index."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "sub").mkdir(exist_ok=True)
    names = {name: f"{inside}model-{number % 2 + 1:05}-of-00002.safetensors" for number, name in enumerate(weights)}
    for file in sorted(set(names.values())):
        save_file({n: t for n, t in weights.items() if names[n] == file}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.parametrize("inside", ["", "sub/"])
def test_identity_covers_every_shard_and_the_index(inside, altered, true_behaviour):
    folder = altered()
    index = sharded(folder, inside=inside)
    trained = identity_of(folder)
    assert behaviour(folder) == true_behaviour
    for file in sorted(set(index["weight_map"].values())):
        changed = altered(source=folder)
        raw = bytearray((changed / file).read_bytes())
        raw[-1] ^= 1
        (changed / file).unlink()
        (changed / file).write_bytes(raw)
        assert refused(trained, changed), file
    swapped = altered("model.safetensors.index.json", lambda found: found["metadata"].update(x=1), source=folder)
    assert refused(trained, swapped)
    gone = altered(source=folder)
    (gone / file).unlink()
    assert refused(trained, gone)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a\\x.safetensors", "x.bin", "a/../x.safetensors"]
)
def test_refuses_an_index_that_names_other_files(name, altered):
    folder = altered()
    sharded(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="outside of the base or of another kind"):
        identity_of(folder)
    with pytest.raises(IntegrityError, match="outside of the base or of another kind"):
        behaviour(folder)


def test_refuses_a_link_in_place_of_weights(base, altered):
    folder = altered()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(base / "model.safetensors")
    with pytest.raises(IntegrityError, match="is a link"):
        identity_of(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"transformers_weights": "model.safetensors"},
        {"attribute_map": {"transformers_weights": "other"}, "other": "model.safetensors"},
        {"configuration_files": ["config.4.0.0.json"]},
    ],
)
def test_refuses_a_config_that_names_other_files_before_weights_load(change, altered):
    folder = altered("config.json", lambda found: found.update(change))
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    with pytest.raises(IntegrityError, match="load other files"):
        identity_of(folder)
    with pytest.raises(IntegrityError, match="load other files"):
        behaviour(folder)


def test_messages_name_changed_fields_with_both_values(altered, trained):
    changed = list_identity_differences(
        trained, identity_of(altered("config.json", lambda found: found.update(hidden_act="relu", rope_theta=17.0)))
    )
    assert changed == ['config (hidden_act: "silu", found "relu"; rope_theta: nothing, found 17.0)']
    stops = altered("generation_config.json", lambda found: found.update(eos_token_id=[2, 7]))
    assert "stop ids ([2], found [2,7])" in list_identity_differences(trained, identity_of(stops))


@pytest.mark.parametrize(
    "architecture", ["qwen3", *(pytest.param(name, marks=ON_DEMAND) for name in ("gpt2", "gemma2"))]
)
def test_refuses_a_changed_config_of_other_architectures_unless_harmless(architecture, random_base, altered):
    source = random_base(architecture)
    trained, name = identity_of(source), "config.json"
    logits = behaviour(source)[4]
    for field, change in single_changes(source, name):
        if field not in IGNORED_FIELDS[name]:
            folder = altered(name, change, source=source)
            assert refused(trained, folder), field
            if not refused(trained, folder, exact=False):
                assert behaviour(folder)[4] == logits, field


@pytest.fixture
def settled(base, tmp_path):
    """A copy of a base whose last change is old enough for the cache of digests."""
    from lora_chat.models import integrity

    folder = tmp_path / "settled"
    shutil.copytree(base, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrity, "_MIN_AGE_SECONDS", -1.0)
        yield folder


def test_a_changed_file_does_not_use_its_cached_digest(settled):
    base = LocalBase("base", settled)
    trained = compute_identity(base, load_tokenizer(base))
    path = settled / "model.safetensors"
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert refused(trained, settled)


def test_digests_are_cached_and_recomputing_ignores_the_cache(settled, monkeypatch):
    from lora_chat.models import integrity
    from lora_chat.system.cache_dir import cache_dir

    base = LocalBase("base", settled)
    tokenizer = load_tokenizer(base)
    trained = compute_identity(base, tokenizer)
    cache = cache_dir() / "digests.json"
    key = next(key for key in json.loads(cache.read_text()) if key.startswith(str(settled)))
    cache.write_text(json.dumps({key: "0" * 64}))
    assert (
        compute_identity(base, tokenizer).files != trained.files
    )  # the cache, in a folder that is private to its user
    assert compute_identity(base, tokenizer, recompute_digests=True) == trained
    assert compute_identity(base, tokenizer) == trained  # and it was corrected
    monkeypatch.setattr(integrity, "digest_file", lambda path: pytest.fail("the file was read"))
    assert compute_identity(base, tokenizer) == trained


def test_does_not_cache_the_digest_of_a_recent_change(base, tmp_path):
    from lora_chat.system.cache_dir import cache_dir

    folder = tmp_path / "fresh"
    shutil.copytree(base, folder)
    identity_of(folder)
    cache = cache_dir() / "digests.json"
    assert not cache.is_file() or str(folder) not in cache.read_text()


def test_version_1_keeps_its_fields_and_compares_only_them(altered, trained):
    old = {
        key: getattr(trained, key) for key in ("base", "revision", "weights", "tokenizer", "chat_template", "system")
    }
    assert Identity(**old).model_dump() == old
    assert Identity.model_validate_json(Identity(**old).model_dump_json()) == Identity(**old)
    other_config = identity_of(altered("config.json", lambda found: found.update(hidden_act="relu")))
    assert list_identity_differences(Identity(**old), other_config) == []
    assert list_identity_differences(trained, other_config)
    for wrong in ({"stops": (1,)}, {"version": 2}, {"version": 3}, {"generation": {}}):
        with pytest.raises(ValueError, match="version"):
            Identity(**old, **wrong)


def test_using_a_tokenizer_does_not_change_its_identity(base, trained):
    found = LocalBase("base", base)
    tokenizer = load_tokenizer(found)
    tokenizer(["a", "long text"], padding=True, truncation=True, max_length=3)
    assert compute_identity(found, tokenizer) == trained


def test_paths_of_this_machine_are_stored_as_digests(altered):
    folder = altered("config.json", lambda found: found.update(base_path="/home/anna/secret", more=[["~/x"]]))
    assert "anna" not in identity_of(folder).model_dump_json()
    assert "~" not in identity_of(folder).model_dump_json()


def saved_again(folder, *, full):
    """Write a base's settings like another version: with all defaults, or with the fewest fields that load the same."""
    from transformers import AutoConfig, GenerationConfig

    config, generation = AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    for path in (folder / "config.json", folder / "generation_config.json"):
        path.unlink()
    if full:
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        (folder / "generation_config.json").write_text(json.dumps(generation.to_dict()))
        return
    default = type(config)().to_dict() | {"head_dim": config.hidden_size // config.num_attention_heads}
    keep = ("model_type", "tie_word_embeddings")
    named = {key: value for key, value in config.to_dict().items() if key in keep or default.get(key) != value}
    assert len(named) < 16
    named["rope_theta"] = named.pop("rope_parameters", config.rope_parameters)["rope_theta"]  # as version 4 has it
    (folder / "config.json").write_text(json.dumps({**named, "rope_scaling": None}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer.pop("backend")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


OLD_BASE = Path(__file__).parents[1] / "fixtures" / "run-of-version-1" / "base"


@pytest.mark.parametrize("source", ["new", "old"])
def test_a_base_saved_by_another_version_has_the_same_identity(source, base, altered, true_behaviour):
    source = {"new": base, "old": OLD_BASE}[source]
    few, all_of_them = altered(source=source), altered(source=source)
    saved_again(few, full=False)
    saved_again(all_of_them, full=True)
    for trained in (source, few, all_of_them):
        for found in (source, few, all_of_them):
            assert not refused(identity_of(trained), found, exact=False), (trained, found)
            if trained != found:
                assert refused(identity_of(trained), found)
    if source == base:
        assert behaviour(few) == behaviour(all_of_them) == true_behaviour


ONE_SIDED = [
    *({"config.json": {name: value}} for name, value in {
        "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0},
        "head_dim": 32,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "repetition_penalty": 1.0,
        "repetition_penalty ": 9.0,
        "transformers_weights": None,
        "auto_map": None,
        "_attn_implementation": "eager",
        "made_up": None,
        "text_config": {},
        "num_hidden_layers": 10**9,
        "attribute_map": {"hidden_act": "x"},
    }.items()),
    *({"generation_config.json": {name: value}} for name, value in {
        "repetition_penalty": 1.1,
        "temperature": 0.5,
        "cache_implementation": "quantized",
        "guidance_scale": 2.0,
        "suppress_tokens": [5],
        "made_up": None,
    }.items()),
]  # fmt: skip


@pytest.mark.parametrize("change", ONE_SIDED, ids=str)
def test_refuses_a_one_sided_field_with_another_value_than_the_default(change, altered):
    few = altered()
    saved_again(few, full=False)
    more = altered(source=few)
    for name, fields in change.items():
        found = json.loads((more / name).read_text()) if (more / name).is_file() else {}
        (more / name).unlink(missing_ok=True)
        (more / name).write_text(json.dumps(found | fields))
    assert refused(identity_of(few), more, exact=False)
    try:
        trained = identity_of(more)
    except (IntegrityError, UnavailableError):
        return
    assert refused(trained, few, exact=False)


def test_compares_generation_settings_of_the_config_if_their_file_is_missing(altered):
    both = altered("config.json", lambda found: found.update(repetition_penalty=9.0))
    without = altered(source=both)
    (without / "generation_config.json").unlink()
    assert refused(identity_of(both), without, exact=False)
    assert refused(identity_of(without), both, exact=False)
