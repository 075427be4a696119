"""Which layers a recipe selects, with which ranks and alphas, and which parameters then move."""

import json
from dataclasses import replace

import pytest
import torch

from lora_chat.config.layer_patterns import check_layer_pattern
from lora_chat.config.recipe import AdapterSection, BaseSection
from lora_chat.errors import RecipeError
from lora_chat.models.adapter import (
    attach_adapter,
    count_trainable_parameters,
    load_adapter,
    merge_adapter,
    resolve_targets,
    write_stored_adapter,
)
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.adapter_files import read_adapter, save_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_meta_model, load_tokenizer
from lora_chat.models.identity import compute_identity
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.tensor_checks import check_tensors

IDS = torch.tensor([[5, 9, 77, 30]])
SELECTIVE = {
    "rank": 4,
    "target_modules": r".*\.(self_attn\.[qo]_proj|mlp\.down_proj)",
    "layers": "last 1",
    "rank_pattern": {"down_proj": 8},
    "alpha_pattern": {r"self_attn\.q_proj": 64.0},
}


@pytest.fixture(scope="module")
def skeleton(cache_home):
    return load_meta_model(find_base(BaseSection(name="tiny-random")))


def resolve(skeleton, **settings):
    return resolve_targets(skeleton, AdapterSection(**settings))


def test_selects_layers_by_pattern_and_number_with_their_ranks(skeleton):
    settings = resolve(skeleton, **SELECTIVE)
    prefix = "model.layers.1"
    names = [f"{prefix}.mlp.down_proj", f"{prefix}.self_attn.o_proj", f"{prefix}.self_attn.q_proj"]
    assert list(settings.target_modules) == names
    assert settings.rank_pattern == ((f"{prefix}.mlp.down_proj", 8),)
    assert settings.alpha_pattern == ((f"{prefix}.self_attn.q_proj", 64.0),)
    assert LoraSettings.from_section(settings.to_section()) == settings


@pytest.mark.parametrize(
    ("layers", "numbers"), [("first 1", {0}), ("last 1", {1}), ("last 2", {0, 1}), ((1,), {1}), ((1, 0), {0, 1})]
)
def test_layers_are_numbers_or_an_end(skeleton, layers, numbers):
    targets = resolve(skeleton, layers=layers).target_modules
    assert {int(target.split(".")[2]) for target in targets} == numbers
    assert len(targets) == 7 * len(numbers)


def test_settings_without_a_selection_stay_as_they_are(skeleton):
    section = AdapterSection(target_modules=("q_proj",))
    assert resolve_targets(skeleton, section) == LoraSettings.from_section(section)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"layers": (0, 2)}, "has no layer 2, because it has 2 decoder layers, 0 to 1"),
        ({"layers": "last 3"}, "has no last 3"),
        ({"target_modules": r".*\.query"}, "matches none of the base's layers"),
        ({"rank_pattern": {"query": 8}}, "rank_pattern: query decides no adapted layer"),
        ({"rank_pattern": {"q_proj": 8, "self_attn.q_proj": 9}}, "self_attn.q_proj decides no adapted layer"),
        ({"alpha_pattern": {"k_proj": 8.0}, "target_modules": ("q_proj",)}, "k_proj decides no adapted layer"),
        ({"trainable_tokens": (5,), "modules_to_save": ("embed_tokens", "lm_head")}, "trainable_tokens has no effect"),
        ({"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"q_proj": 60000.0}}, "scale"),
    ],
)
def test_refuses_layers_that_the_base_does_not_have(skeleton, settings, problem):
    with pytest.raises(RecipeError, match=problem):
        resolve(skeleton, **settings)


@pytest.mark.parametrize(
    "pattern", ["(a+)+", "(a|a)*b", "(a|aa){30}", "(.*)*", r"(a)\1", "(?=a)a", ".*.*.*.*.*x", "(", "a" * 501, "a?" * 30]
)
def test_refuses_patterns_that_could_take_long(pattern):
    with pytest.raises(ValueError, match=r"pattern|regular expression|too long"):
        check_layer_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [r".*\.(q|v)_proj", r"model\.layers\.(1[0-9]|2[0-3])\.(self_attn|mlp)\..*_proj", r"layers\.\d+\.mlp.*", "q_proj"],
)
def test_accepts_usual_patterns(pattern):
    assert check_layer_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "settings",
    [{"layers": (1, 1)}, {"layers": ()}, {"layers": "last 0"}, {"target_modules": "q_proj"}, {"rank_pattern": {}}],
)
def test_rejects_settings_without_meaning(settings):
    with pytest.raises(ValueError, match=r"layers|target|rank|at least|match"):
        AdapterSection(**settings)


@pytest.fixture(scope="module")
def saved(cache_home, tmp_path_factory):
    """Return a trained selective adapter: its folder, base, precision, outputs, and the names that moved."""
    from lora_chat.config.plan import plan_precision
    from lora_chat.config.recipe import QuantizationSection
    from lora_chat.system.hardware import Hardware

    folder = tmp_path_factory.mktemp("selective") / "adapter"
    base = find_base(BaseSection(name="tiny-random"))
    precision = plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, False, 2))
    model = attach_adapter(load_base_model(base, precision), AdapterSection(**SELECTIVE))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(2):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    save_adapter(model, folder, compute_identity(base, load_tokenizer(base)), "{{ messages }}", "card")
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    return folder, base, precision, logits, moved


def test_only_the_selected_layers_move_and_the_plan_counts_them(saved, skeleton):
    *_, moved = saved
    layers = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in moved}
    assert layers == set(resolve(skeleton, **SELECTIVE).target_modules)
    assert all(".lora_A." in name or ".lora_B." in name for name in moved)
    hidden, mlp = skeleton.config.hidden_size, skeleton.config.intermediate_size
    fresh = load_meta_model(find_base(BaseSection(name="tiny-random")))
    attention = 4 * (hidden + skeleton.config.num_attention_heads * skeleton.config.head_dim)
    assert count_trainable_parameters(fresh, AdapterSection(**SELECTIVE)) == 2 * attention + 8 * (hidden + mlp)


def test_reopened_and_merged_models_compute_the_trained_function(saved):
    folder, base, precision, logits, _ = saved
    stored = read_adapter(folder)
    settings = LoraSettings.from_peft(stored.config, "a", {"bias": "none", **stored.config})
    assert check_tensors(stored.read_weights(), settings) == sum(w.numel() for w in stored.read_weights().values())
    model = load_adapter(load_base_model(base, precision), stored)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, logits)
        assert torch.allclose(merge_adapter(model)(input_ids=IDS).logits, logits, atol=1e-4)
        assert not torch.allclose(load_base_model(base, precision)(input_ids=IDS).logits, logits, atol=1e-2)


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_an_adapter_for_llama_cpp_has_one_alpha_and_the_same_function(saved, tmp_path, variant):
    folder, base, precision, logits, _ = saved
    stored = read_adapter(folder)
    if variant == "rslora":
        stored = replace(stored, config={**stored.config, "use_rslora": True})
        with torch.no_grad():
            logits = load_adapter(load_base_model(base, precision), stored)(input_ids=IDS).logits
    write_stored_adapter(stored, tmp_path / "plain", scale_in_alpha=True)
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert not config.get("alpha_pattern") and not config["use_rslora"]
    with torch.no_grad():
        plain = load_adapter(load_base_model(base, precision), read_adapter(tmp_path / "plain"))(input_ids=IDS).logits
    assert torch.allclose(plain, logits, atol=1e-4)


def test_vllm_needs_a_merged_model_for_several_scales(skeleton):
    for settings, answer in ((SELECTIVE, "merged"), ({"layers": "last 1"}, "yes")):
        answers = report_portability(resolve(skeleton, **settings), "none", "llama")
        assert {entry.program: entry.answer for entry in answers}["vLLM"] == answer
