"""A merged model computes the outputs of the adapted model, and a wrong one fails its parity check."""

import json

import pytest
import torch

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.export.formats import TOLERANCES
from lora_chat.export.merge import AdapterBlend, merge_blend, write_merged_model
from lora_chat.export.parity.compare import compare_outputs
from lora_chat.export.parity.outputs import collect_outputs
from lora_chat.export.parity.samples import make_parity_sample
from lora_chat.export.parity.transformers_runner import TransformersRunner
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.models.quantization.dequantized_model import load_dequantized_model
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import resolve_adapter
from lora_chat.system.hardware import Hardware

pytestmark = pytest.mark.slow  # many models are loaded

MODES = ("4bit", "8bit", "none")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def open_blend(precision, *folders, weights=None):
    adapters = [resolve_adapter(read_adapter(folder)) for folder in folders]
    stops = read_stop_ids(adapters[0].base, adapters[0].tokenizer)
    return AdapterBlend(tuple(zip(adapters, weights or [1.0] * len(adapters), strict=True)), precision, stops)


def samples_for(blend):
    samples = []
    for question, reply in [("Where is the key?", "Under it."), ("Wer weiss es?", "Niemand."), ("one two", "three")]:
        messages = [{"role": "user", "content": question}]
        prompt = render_ids(blend.tokenizer, messages, add_generation_prompt=True)
        ids = [*prompt, *blend.tokenizer(reply)["input_ids"], blend.stop_ids[0]]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        samples.append(make_parity_sample(ids, labels, messages))
    return samples


@pytest.mark.parametrize("architecture", [slow("llama"), "gpt2"])
@pytest.mark.parametrize("mode", MODES)
def test_merged_agrees_with_adapted(random_base, make_adapter, tmp_path, architecture, mode):
    _, precision = make_adapter(random_base(architecture, 8.0), tmp_path / "adapter", mode)
    blend = open_blend(precision, tmp_path / "adapter")
    samples = samples_for(blend)
    report = merge_blend(blend, samples, tmp_path / "merged")
    assert not report.failures
    assert report.control_kl > 20 * report.mean_kl
    assert report.tokens == sum(len(sample.positions) for sample in samples)
    tokenizer = load_tokenizer(find_base(BaseSection(name=str(tmp_path / "merged"))))
    assert tokenizer.chat_template == blend.tokenizer.chat_template
    assert not list((tmp_path / "merged").glob("*.bin"))
    saved = json.loads((tmp_path / "merged" / "proof.json").read_text())["proofs"][0]
    assert saved["mean_kl"] == report.mean_kl
    assert "agrees" in (tmp_path / "merged" / "PROOF.md").read_text()


@pytest.mark.parametrize("mode", MODES)
def test_base_fails_the_parity_check_of_the_merged_model(random_base, make_adapter, tmp_path, mode):
    base, precision = make_adapter(random_base("llama", 8.0), tmp_path / "adapter", mode)
    blend = open_blend(precision, tmp_path / "adapter")
    samples = samples_for(blend)
    expected = blend.collect_outputs(samples)
    runner = TransformersRunner(load_base_model(base, precision), blend.tokenizer)
    exported = collect_outputs(runner, samples, blend.stop_ids, 259)
    for tolerances in TOLERANCES.values():  # the widest too
        assert compare_outputs("merged model", runner.name, expected, exported, samples, tolerances).failures


def test_adapter_without_effect_fails(random_base, make_adapter, tmp_path):
    _, precision = make_adapter(random_base("llama", 8.0), tmp_path / "adapter", "none", size=0.0)
    blend = open_blend(precision, tmp_path / "adapter")
    with pytest.raises(IntegrityError, match="the base without the adapter is as near"):
        merge_blend(blend, samples_for(blend), tmp_path / "merged")


def test_zero_adapter_leaves_every_weight_unchanged(random_base, make_adapter, tmp_path):
    base, precision = make_adapter(random_base("gpt2"), tmp_path / "adapter", "4bit", size=0.0)
    write_merged_model(open_blend(precision, tmp_path / "adapter"), tmp_path / "merged")
    merged = find_base(BaseSection(name=str(tmp_path / "merged")))
    plain = precision.model_copy(update={"mode": "none"})
    merged_weights = dict(load_base_model(merged, plain).named_parameters())
    expected_weights = dict(load_dequantized_model(base, precision).named_parameters())
    assert merged_weights.keys() == expected_weights.keys()
    assert all(merged_weights[name].equal(expected_weights[name]) for name in expected_weights)


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_merges_lora_variants(random_base, make_adapter, tmp_path, variant):
    _, precision = make_adapter(random_base("llama", 8.0), tmp_path / "adapter", "4bit", variant=variant, size=0.1)
    blend = open_blend(precision, tmp_path / "adapter")
    assert not merge_blend(blend, samples_for(blend), tmp_path / "merged").failures


def test_adds_adapters_with_their_weights(random_base, make_adapter, tmp_path):
    base = random_base("llama", 8.0)
    make_adapter(base, tmp_path / "one", seed=1)
    _, precision = make_adapter(base, tmp_path / "two", seed=2, variant="rslora", targets=("q_proj", "up_proj"))
    exact = precision.model_copy(update={"dtype": "float32"})
    both = open_blend(exact, tmp_path / "one", tmp_path / "two", weights=[0.7, -0.4])
    assert not merge_blend(both, samples_for(both), tmp_path / "merged").failures

    def weights(blend, name):
        write_merged_model(blend, tmp_path / name)
        return load_base_model(find_base(BaseSection(name=str(tmp_path / name))), exact).state_dict()

    base_weights = load_base_model(both.base, exact).state_dict()
    one, two = (weights(open_blend(exact, tmp_path / name), f"only-{name}") for name in ("one", "two"))
    merged_weights = load_base_model(find_base(BaseSection(name=str(tmp_path / "merged"))), exact).state_dict()
    for name, start in base_weights.items():
        expected_weights = start + 0.7 * (one[name] - start) - 0.4 * (two[name] - start)
        torch.testing.assert_close(merged_weights[name], expected_weights, rtol=1e-4, atol=1e-5)


def test_rejects_adapters_that_cannot_be_added(random_base, make_adapter, tmp_path):
    _, precision = make_adapter(random_base("llama"), tmp_path / "one")
    make_adapter(random_base("qwen2"), tmp_path / "other")
    make_adapter(random_base("llama"), tmp_path / "dora", variant="dora")
    with pytest.raises(IntegrityError, match="only adapters of one base"):
        open_blend(precision, tmp_path / "one", tmp_path / "other")
    with pytest.raises(UsageError, match="DoRA"):
        open_blend(precision, tmp_path / "one", tmp_path / "dora")
    with pytest.raises(UsageError, match="DoRA"):
        open_blend(precision, tmp_path / "dora", weights=[0.5])


def test_merge_into_original_weights_differs_more(random_base, make_adapter, tmp_path):
    _, precision = make_adapter(random_base("llama", 8.0), tmp_path / "adapter", "4bit", size=0.1)
    blend = open_blend(precision, tmp_path / "adapter")
    samples = samples_for(blend)
    exact = merge_blend(blend, samples, tmp_path / "exact")
    report = merge_blend(blend, samples, tmp_path / "merged", original=True, accept=True)
    assert report.what == "model merged into the original weights"
    assert report.mean_kl > 3 * exact.mean_kl


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dequantized_4_bit_base_equals_the_quantized_base(random_base, architecture):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    precision = plan_precision(QuantizationSection(mode="4bit"), Hardware("cpu", "test", 0, True, 2))

    def logits(model):
        return TransformersRunner(model, None).logits([5, 9, 60, 100, 7, 8], range(6))

    quantized, plain = logits(load_base_model(base, precision)), logits(load_dequantized_model(base, precision))
    original = logits(load_base_model(base, precision.model_copy(update={"mode": "none"})))
    near = float((quantized - plain).abs().mean())
    far = float((quantized - original).abs().mean())
    assert near < far / 2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dequantized_8_bit_weights_are_within_half_a_step_of_the_original(random_base, architecture):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    precision = plan_precision(QuantizationSection(mode="8bit"), Hardware("cpu", "test", 0, False, 2))
    plain = dict(load_dequantized_model(base, precision).named_parameters())
    original = dict(load_base_model(base, precision.model_copy(update={"mode": "none"})).named_parameters())
    name = "transformer.h.0.attn.c_attn.weight" if architecture == "gpt2" else "model.layers.0.mlp.up_proj.weight"
    output = 1 if architecture == "gpt2" else 0  # Conv1D keeps (in, out); a scale belongs to an output
    step = original[name].abs().amax(dim=1 - output, keepdim=True) / 127
    error = (plain[name] - original[name]).abs()
    assert 0 < float((error / step).max()) < 0.6


def test_never_overwrites_files(random_base, make_adapter, tmp_path):
    _, precision = make_adapter(random_base("llama"), tmp_path / "adapter")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        merge_blend(open_blend(precision, tmp_path / "adapter"), [], tmp_path / "taken")
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "years of work"


def test_keeps_a_failed_merge_only_if_accepted(random_base, make_adapter, tmp_path, monkeypatch):
    _, precision = make_adapter(random_base("llama", 8.0), tmp_path / "adapter")
    blend = open_blend(precision, tmp_path / "adapter")
    samples = samples_for(blend)
    stock = load_dequantized_model
    monkeypatch.setattr("lora_chat.export.merge.load_dequantized_model", lambda *a: _damaged(stock(*a)))
    with pytest.raises(IntegrityError, match="not kept"):
        merge_blend(blend, samples, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    report = merge_blend(blend, samples, tmp_path / "merged", accept=True)
    assert report.accepted and report.failures
    assert "does NOT agree, kept on request" in (tmp_path / "merged" / "PROOF.md").read_text()


def _damaged(model):
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(-1)
    return model


@pytest.mark.parametrize("what", ["template", "stops"])
def test_detects_another_template_or_stop_token(random_base, make_adapter, tmp_path, monkeypatch, what):
    _, precision = make_adapter(random_base("llama", 8.0), tmp_path / "adapter")
    blend = open_blend(precision, tmp_path / "adapter")
    samples = samples_for(blend)
    stock = write_merged_model

    def write(blend, folder, **options):
        stock(blend, folder, **options)
        if what == "template":
            (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        else:
            path = folder / "generation_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 7}))

    monkeypatch.setattr("lora_chat.export.merge.write_merged_model", write)
    message = "other token ids" if what == "template" else "end at the tokens \\[7\\]"
    with pytest.raises(IntegrityError, match=message):
        merge_blend(blend, samples, tmp_path / "merged")
