"""Biases that are trained with an adapter: which move, how they are saved, and what the base computes without them."""

import pytest
import torch

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.models.adapter import attach_adapter, load_adapter, merge_adapter, resolve_targets, without_adapter
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.adapter_files import read_adapter, save_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_meta_model, load_tokenizer
from lora_chat.models.identity import compute_identity
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.tensor_checks import check_tensors
from lora_chat.system.hardware import Hardware
from lora_chat.training.adapter_dtype import cast_adapter
from lora_chat.training.fast_path.select import find_fast_path

IDS = torch.tensor([[5, 9, 77, 30, 8]])
SECTION = AdapterSection(rank=2, bias="lora_only")


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def trained(request, random_base, tmp_path_factory):
    """Return a trained adapter with biases: the base, its precision, the model, the moved names, and its folder."""
    base = find_base(BaseSection(name=str(random_base(request.param))))
    precision = plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, True, 2))
    model = attach_adapter(load_base_model(base, precision), SECTION)
    cast_adapter(model, torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    cast_adapter(model, torch.bfloat16)
    folder = tmp_path_factory.mktemp(request.param) / "adapter"
    save_adapter(model, folder, compute_identity(base, load_tokenizer(base)), "{{ messages }}", "card")
    return base, precision, model, moved, folder


def test_only_lora_and_the_biases_of_its_layers_move(trained):
    *_, moved, _ = trained
    biases = {name for name in moved if name.endswith(".base_layer.bias")}
    assert biases
    assert all(".lora_A." in name or ".lora_B." in name for name in moved - biases)


def test_reopened_and_merged_models_have_the_trained_biases(trained):
    base, precision, model, _, folder = trained
    expected = logits_of(model)
    stored = read_adapter(folder)
    settings = LoraSettings.from_peft(stored.config, "a", {**stored.config, "bias": "none"})
    weights = stored.read_weights()
    assert check_tensors(weights, settings) == sum(weight.numel() for weight in weights.values())
    reopened = load_adapter(load_base_model(base, precision), stored)
    assert torch.equal(logits_of(reopened), expected)
    original = logits_of(load_base_model(base, precision))
    for adapted in (model, reopened):
        with without_adapter(adapted):
            assert torch.equal(logits_of(adapted), original)
        assert torch.equal(logits_of(adapted), expected)
    merged = logits_of(merge_adapter(reopened))
    assert float((merged - expected).abs().max()) < 0.1 * float((merged - original).abs().max())


def test_a_bias_that_the_config_does_not_name_is_refused(trained):
    stored = read_adapter(trained[-1])
    settings = LoraSettings.from_peft({**stored.config, "bias": "none"}, "a", {**stored.config, "bias": "none"})
    with pytest.raises(IntegrityError, match="base_layer is not expected"):
        check_tensors(stored.read_weights(), settings)
    with pytest.raises(IntegrityError, match="bias"):
        LoraSettings.from_peft({**stored.config, "bias": "all"}, "a", {**stored.config, "bias": "none"})


def test_the_fast_path_leaves_layers_with_trained_biases_to_peft(random_base):
    base = find_base(BaseSection(name=str(random_base("qwen2"))))
    precision = plan_precision(QuantizationSection(mode="none"), Hardware("cpu", "test", 0, False, 2))
    model = attach_adapter(load_base_model(base, precision), SECTION)
    path = find_fast_path(model, list(range(5, 60)))
    assert path.packed_collator is not None
    assert any("a trained bias" in note for note in path.notes)


def test_a_base_without_biases_is_refused(cache_home):
    skeleton = load_meta_model(find_base(BaseSection(name="tiny-random")))
    with pytest.raises(RecipeError, match="none of the adapted layers"):
        resolve_targets(skeleton, SECTION)


def test_programs_without_biases_need_a_merged_model():
    answers = {
        entry.program: entry.answer for entry in report_portability(LoraSettings.from_section(SECTION), "none", "qwen2")
    }
    assert (answers["PEFT"], answers["vLLM"], answers["llama.cpp"]) == ("yes", "merged", "merged")
