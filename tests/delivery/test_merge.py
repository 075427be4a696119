"""A merged model says what the adapted model says, and a wrong one is caught."""

import json
import shutil

import pytest
import torch

from lora_chat.delivery.merge import merge
from lora_chat.delivery.proof import LARGEST_MEAN_KL, check_agreement, collect_logits
from lora_chat.dialogues.chat_template import install_template, render_ids
from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.models.adapter import attach_adapter, load_adapter
from lora_chat.models.adapter_folder import read_adapter, save_adapter
from lora_chat.models.base_model import (
    find_base,
    load_base_model,
    load_tokenizer,
)
from lora_chat.models.dequantised import load_dequantised
from lora_chat.models.identity import identify
from lora_chat.models.loading import find_adapter
from lora_chat.models.stop_ids import read_stop_ids
from lora_chat.planning.hardware import Hardware
from lora_chat.planning.plan import make_precision
from lora_chat.planning.recipe import AdapterSection, BaseSection, QuantizationSection

CPU = Hardware("cpu", "test", 0, True, 2)
MODES = ("4bit", "8bit", "none")


def make_adapter(base_name, folder, mode, variant="lora", size=0.3):
    """An adapter with weights large enough to matter, not trained."""
    base = find_base(BaseSection(name=str(base_name)))
    tokenizer = load_tokenizer(base)
    template = install_template(tokenizer)
    precision = make_precision(QuantizationSection(mode=mode), CPU)
    model = attach_adapter(load_base_model(base, precision), AdapterSection(rank=4, variant=variant))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * size
    save_adapter(model, folder, identify(base, tokenizer), template, "card")
    return base, tokenizer, precision


def make_probes(tokenizer):
    texts = ["Where is the key?", "Wer weiß es?", "one two three four five six seven"]
    return [render_ids(tokenizer, [{"role": "user", "content": t}], reply_follows=True) for t in texts]


@pytest.mark.parametrize("architecture", [pytest.param("llama", marks=pytest.mark.slow), "gpt2"])
@pytest.mark.parametrize("mode", MODES)
def test_merged_agrees_with_adapted(random_base, tmp_path, architecture, mode):
    base, tokenizer, precision = make_adapter(random_base(architecture, 8.0), tmp_path / "adapter", mode)
    found = find_adapter(read_adapter(tmp_path / "adapter"), lambda _: None)
    stop_ids = read_stop_ids(base, tokenizer)
    report = merge(found, precision, stop_ids, make_probes(tokenizer), tmp_path / "merged", lambda _: None)
    assert report.mean_kl < LARGEST_MEAN_KL[mode]
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert written["eos_token_id"] in (list(stop_ids), stop_ids[0])
    again = load_tokenizer(find_base(BaseSection(name=str(tmp_path / "merged"))))
    assert make_probes(again) == make_probes(tokenizer)
    assert not list((tmp_path / "merged").glob("*.bin"))

    base_model = load_base_model(base, precision)
    adapted = load_adapter(load_base_model(base, precision), read_adapter(tmp_path / "adapter"))
    with pytest.raises(IntegrityError, match="does not say"):  # the negative control: the base alone is no merge
        probes = make_probes(tokenizer)
        check_agreement(collect_logits(adapted, probes), collect_logits(base_model, probes), mode)


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_variants_merge_too(random_base, tmp_path, variant):
    base, tokenizer, precision = make_adapter(random_base("llama"), tmp_path / "adapter", "4bit", variant, size=0.1)
    found = find_adapter(read_adapter(tmp_path / "adapter"), lambda _: None)
    stop_ids = read_stop_ids(base, tokenizer)
    report = merge(found, precision, stop_ids, make_probes(tokenizer), tmp_path / "merged", lambda _: None)
    assert report.mean_kl < LARGEST_MEAN_KL["4bit"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dequantised_4_bit_base_computes_what_the_quantised_one_does(random_base, architecture):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    precision = make_precision(QuantizationSection(mode="4bit"), CPU)
    probes = [[5, 9, 60, 100, 7, 8]]
    quantised = collect_logits(load_base_model(base, precision), probes)
    plain = collect_logits(load_dequantised(base, precision), probes)
    original = collect_logits(load_base_model(base, precision.model_copy(update={"mode": "none"})), probes)
    near = float((quantised[0] - plain[0]).abs().mean())
    far = float((quantised[0] - original[0]).abs().mean())
    assert near < far / 2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dequantised_8_bit_weights_are_within_half_a_step_of_the_original(random_base, architecture):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    precision = make_precision(QuantizationSection(mode="8bit"), Hardware("cpu", "test", 0, False, 2))
    plain = dict(load_dequantised(base, precision).named_parameters())
    original = dict(load_base_model(base, precision.model_copy(update={"mode": "none"})).named_parameters())
    name = "transformer.h.0.attn.c_attn.weight" if architecture == "gpt2" else "model.layers.0.mlp.up_proj.weight"
    output = 1 if architecture == "gpt2" else 0  # Conv1D keeps (in, out); a scale belongs to an output
    step = original[name].abs().amax(dim=1 - output, keepdim=True) / 127
    error = (plain[name] - original[name]).abs()
    assert 0 < float((error / step).max()) < 0.6


def test_what_stands_there_is_never_overwritten(random_base, tmp_path):
    base, tokenizer, precision = make_adapter(random_base("llama"), tmp_path / "adapter", "none")
    found = find_adapter(read_adapter(tmp_path / "adapter"), lambda _: None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="never written over"):
        merge(found, precision, read_stop_ids(base, tokenizer), [], tmp_path / "taken", lambda _: None)
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "years of work"


def test_a_merge_that_fails_its_proof_is_not_kept(random_base, tmp_path, monkeypatch):
    base, tokenizer, precision = make_adapter(random_base("llama"), tmp_path / "adapter", "4bit")
    found = find_adapter(read_adapter(tmp_path / "adapter"), lambda _: None)
    monkeypatch.setitem(LARGEST_MEAN_KL, "4bit", -1.0)
    stop_ids = read_stop_ids(base, tokenizer)
    with pytest.raises(IntegrityError, match="not kept"):
        merge(found, precision, stop_ids, make_probes(tokenizer), tmp_path / "merged", lambda _: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_an_adapter_of_another_base_is_refused(random_base, tmp_path):
    make_adapter(random_base("llama"), tmp_path / "adapter", "none")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(random_base("qwen2"))
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="another base: other weights of the base"):
        find_adapter(read_adapter(tmp_path / "adapter"), lambda _: None)


def test_damaged_and_smuggled_weights_are_refused(random_base, tmp_path):
    from safetensors.torch import load_file, save_file

    base, _, precision = make_adapter(random_base("llama"), tmp_path / "adapter", "none")
    good = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(iter(good))
    embedding = {"base_model.model.model.embed_tokens.weight": torch.zeros(259, 64)}
    cases = {
        "1 weights missing": {k: v for k, v in good.items() if k != name},
        "1 foreign": {**good, **embedding},
        "not numbers": {**good, name: good[name] * float("nan")},
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
def test_hostile_adapter_settings_are_refused(random_base, tmp_path, field, value):
    base, _, precision = make_adapter(random_base("llama"), tmp_path / "adapter", "none")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(IntegrityError):
        load_adapter(load_base_model(base, precision), read_adapter(tmp_path / "adapter"))
