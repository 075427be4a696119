"""A sampled reply depends on its prompt, the settings and its number, and not on its batch."""

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, TopPLogitsWarper

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.config.load import read_recipe
from lora_chat.errors import RecipeError
from lora_chat.inference import generation
from lora_chat.inference.sampler import keep_nucleus, make_processors, scale_scores

PROMPTS = [[5 + i, 9, 40 + i, 7] * (1 + i % 3) for i in range(11)]
WARM = GenerationSection(temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def model(random_base):
    return AutoModelForCausalLM.from_pretrained(random_base("llama", 8.0), dtype=torch.float32).eval()


def reply(model, prompts=PROMPTS, settings=WARM, **options):
    return generation.generate_ids(model, 0, prompts, [2], 8, generation=settings, **options)


def test_sampled_replies_do_not_depend_on_the_batch(model):
    together = reply(model)
    assert together == reply(model, batch_size=1) == reply(model, batch_size=4)
    assert together != generation.generate_ids(model, 0, PROMPTS, [2], 8)
    assert together != reply(model, settings=WARM.model_copy(update={"seed": 4}))
    assert reply(model, PROMPTS[:1]) == together[:1]


def test_equal_prompts_get_different_replies_and_a_model_without_padding_the_same_ones(model, monkeypatch):
    together = reply(model, PROMPTS[:1] * 4)
    assert len({tuple(ids) for ids in together}) == 4
    before = reply(model)
    support = generation.find_batch_support(model, 0, PROMPTS[0])
    without = type(support)(caches=True, pads=False)
    monkeypatch.setattr(generation, "find_batch_support", lambda *args: without)
    assert reply(model) == before


@pytest.mark.parametrize("settings", [{"temperature": 1e-300}, {"temperature": 2.0, "top_p": 1e-9}])
def test_a_tiny_temperature_or_nucleus_takes_the_most_probable_token(model, settings):
    assert reply(model, settings=GenerationSection(**settings)) == reply(model, settings=GREEDY)


def test_greedy_replies_need_no_processor():
    assert list(make_processors(GREEDY, [0, 1])) == []


def test_samples_have_the_probabilities_of_the_model():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf]]).repeat(500, 1)
    (sampler,) = make_processors(GenerationSection(temperature=0.7, seed=1), range(500))
    draws = torch.cat([sampler(None, logits).argmax(-1) for _ in range(40)])
    shares = torch.bincount(draws, minlength=5) / len(draws)
    expected = (logits[0] / 0.7).softmax(-1)
    # Five standard deviations of a share of 20,000 draws.
    assert ((shares - expected).abs() <= 5 * (expected * (1 - expected) / len(draws)).sqrt()).all()
    assert shares[4] == 0


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_is_that_of_transformers(top_p):
    scores = torch.randn(50, 300, generator=torch.Generator().manual_seed(2)).double() * 3
    assert torch.equal(keep_nucleus(scores, top_p), TopPLogitsWarper(top_p)(None, scores))
    assert keep_nucleus(scores, 1.0) is scores


def test_a_large_logit_and_a_small_temperature_do_not_overflow():
    scores = scale_scores(torch.tensor([[3e38, 1.0, -torch.inf]]), 1e-9)
    assert scores.tolist() == [[0.0, -torch.inf, -torch.inf]]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": 0.8, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.1},
        {"top_p": 0.5},
        {"seed": -1},
        {"temperature": "0.8"},
    ],
)
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        GenerationSection(**settings)


def test_the_command_line_sets_single_keys_of_the_section(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "data: {train: x.jsonl}\nevaluation:\n  generation: {temperature: 0.5, seed: 2}\n", encoding="utf-8"
    )
    recipe = read_recipe(path, ["evaluation.generation.temperature=0.8", "evaluation.generation.top_p=0.9"])
    assert recipe.evaluation.generation == GenerationSection(temperature=0.8, top_p=0.9, seed=2)
    with pytest.raises(RecipeError, match="Did you mean temperature"):
        read_recipe(path, ["evaluation.generation.temprature=0.8"])
    with pytest.raises(RecipeError, match="name a section and a key"):
        read_recipe(path, ["evaluation.samples.count=1"])
