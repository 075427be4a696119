"""Chosen plans fit the device and keep given settings; suggestions are the smallest changes that help."""

import numpy as np
import pytest

from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import DataSection, QuantizationSection, Recipe, TrainingSection
from lora_chat.config.sizes import parse_size
from lora_chat.data.lengths import DataLengths, RowLengths
from lora_chat.errors import RecipeError
from lora_chat.models.shape import read_shape
from lora_chat.planning.estimate import judge_fit, make_estimate
from lora_chat.planning.gpu_specs import target_from_memory_size
from lora_chat.planning.notes import list_notes
from lora_chat.planning.overrides import format_overrides
from lora_chat.planning.settings_search import (
    Candidate,
    PlanningProblem,
    choose_plan,
    find_fitting_candidate,
)
from lora_chat.system.hardware import Hardware
from tests.planning.shapes import LLAMA_8B_CONFIG

LLAMA_8B = read_shape(LLAMA_8B_CONFIG, "8B")
GIB = 2**30


def lengths(*tokens):
    tokens = np.asarray(tokens)
    return RowLengths(tokens, tokens, tokens // 3)


DATA = DataLengths(lengths(*range(100, 1100, 10)), lengths(400, 900), (60, 80), 64)


def plan_of(mode="4bit", **training):
    recipe = Recipe(
        data=DataSection(train="x"),
        quantization=QuantizationSection(mode=mode),
        training=TrainingSection(**training),
    )
    return make_plan(recipe, Hardware("cuda", "a card", 8 * GIB, True, 4))


def problem(gib, data=DATA):
    return PlanningProblem(LLAMA_8B, data, target_from_memory_size(int(gib * GIB)))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("gib", [8, 12, 16, 24, 80])
def test_chosen_plan_fits_and_more_memory_is_never_slower(gib, fast):
    plan, sizes = plan_of(fast_path=fast), (gib, gib * 1.5)
    small, large = (
        Candidate(choose_plan(plan, problem(size), problem(size).target.limit), problem(size)) for size in sizes
    )
    assert small.fits(problem(gib).target.limit)
    assert large.seconds_per_step <= small.seconds_per_step * 1.04  # a plan that takes less memory wins within 3 %
    for choice in (small, large):
        assert choice.plan.training.effective_batch_size == 16
        assert choice.plan.data == plan_of().data


def test_keeps_settings_of_the_recipe_even_if_they_do_not_fit():
    plan = plan_of(micro_batch_size=16, gradient_checkpointing=False, optimizer="adamw")
    assert choose_plan(plan, problem(8), problem(8).target.limit) == plan
    assert not Candidate(plan, problem(8)).fits(problem(8).target.limit)


@pytest.mark.slow
def test_chooses_8bit_optimizer_only_if_nothing_else_fits():
    plans = [choose_plan(plan_of(), problem(8), limit * 2**20) for limit in range(5000, 9000, 100)]
    assert {plan.training.optimizer for plan in plans} == {"adamw", "adamw_8bit"}
    tight = next(plan for plan in plans if plan.training.optimizer == "adamw_8bit")
    assert tight.training.gradient_checkpointing is True
    assert tight.training.micro_batch_size == 1


def test_suggests_the_fewest_and_fastest_changes_that_fit():
    plan = plan_of(micro_batch_size=16, gradient_checkpointing=True)
    result = find_fitting_candidate(plan, problem(12), problem(12).target.limit)
    settings = format_overrides(plan, result.plan)
    assert [setting.split("=")[0] for setting in settings] == ["training.micro_batch_size"]
    assert result.fits(problem(12).target.limit)
    assert result.plan.training.micro_batch_size * result.plan.training.gradient_accumulation_steps == 16
    larger = [n for n in (2, 4, 8) if n > result.plan.training.micro_batch_size]
    for size in larger:  # no faster size fits
        other = plan_of(micro_batch_size=size, gradient_checkpointing=True)
        assert (
            not Candidate(other, problem(12)).fits(problem(12).target.limit)
            or Candidate(other, problem(12)).seconds_per_step >= result.seconds_per_step
        )


def test_suggests_quantization_only_if_nothing_else_fits():
    result = find_fitting_candidate(
        plan_of("none", micro_batch_size=1, gradient_checkpointing=True), problem(15), problem(15).target.limit
    )
    assert result.plan.precision.mode == "4bit"  # not 8bit, which is slower on a GPU
    assert [setting.split("=")[0] for setting in format_overrides(plan_of("none"), result.plan)].count(
        "quantization.mode"
    ) == 1
    fitting = find_fitting_candidate(
        plan_of("none", micro_batch_size=16, gradient_checkpointing=False), problem(24), problem(24).target.limit
    )
    assert fitting.plan.precision.mode == "none"


@pytest.mark.parametrize(("gib", "better"), [(12, "4bit"), (24, "none")])
def test_note_says_what_8bit_costs_on_a_gpu(gib, better):
    notes = list_notes(Candidate(plan_of("8bit", fast_path=False), problem(gib)), None)
    assert "waits for the GPU in each of its 224 products" in notes[0]
    assert f"--set quantization.mode={better}" in notes[0]
    fast = list_notes(Candidate(plan_of("8bit", fast_path=True), problem(gib)), None)
    assert fast[0].startswith("8bit: evaluation and replies use LLM.int8")
    assert not any("8bit" in note for note in list_notes(Candidate(plan_of(better), problem(gib)), None))


def test_suggests_nothing_if_nothing_fits():
    assert find_fitting_candidate(plan_of(), problem(3), problem(3).target.limit) is None


def test_suggests_faster_settings_for_an_underused_gpu():
    plan = plan_of(micro_batch_size=1, gradient_checkpointing=True)
    result = make_estimate(plan, problem(24), base="8B", origin="x", weight_bytes=None, download_bytes=None)
    assert result.verdict == "fits"
    assert result.suggestion.slower < 0.9
    assert "training.gradient_checkpointing=false" in result.suggestion.settings
    assert result.suggestion.peak <= problem(24).target.limit


def test_verdict_is_tight_within_the_error_of_the_estimate():
    result = [judge_fit(part * GIB, 100 * GIB) for part in (50, 92, 93, 100, 101)]
    assert result == ["fits", "fits", "tight", "tight", "does not fit"]


SIZES = {"12GiB": 12 * GIB, "12 GB": 12 * 10**9, "1.5g": 1.5 * GIB, "800MiB": 800 * 2**20}


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_parses_sizes(text, size):
    assert parse_size(text, "x") == size


@pytest.mark.parametrize("text", ["", "12", "0GiB", "-1GiB", "GiB", "12 TiB", "1e9GB"])
def test_rejects_invalid_sizes(text):
    with pytest.raises(RecipeError, match=r"--memory: .* is not a size of memory"):
        parse_size(text, "--memory")


def test_note_names_the_memory_of_a_loss_without_triton():
    stock = Candidate(plan_of(fast_path=False, micro_batch_size=4), problem(24))
    (note,) = [note for note in list_notes(stock, None) if "Triton" in note]
    size = 42 * min(4096, stock.workload.largest.tokens) * 32768
    assert f"up to {size / GIB:.2f} GiB more" in note
    assert not any("Triton" in note for note in list_notes(Candidate(plan_of(fast_path=True), problem(24)), None))
