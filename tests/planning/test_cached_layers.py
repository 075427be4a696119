"""The cache of dequantized weights on a GPU fills the memory that training leaves, and no more."""

import json
from dataclasses import replace

import pytest

from lora_chat.config.plan import Plan
from lora_chat.planning.device import TIGHT_MEMORY_FRACTION
from lora_chat.planning.estimate import make_estimate
from lora_chat.planning.format import format_estimate
from lora_chat.planning.overrides import format_overrides, with_training
from lora_chat.planning.settings_search import Candidate, choose_plan
from lora_chat.planning.weight_memory import cached_weight_bytes, layer_weight_bytes
from tests.planning.test_settings_search import DATA, GIB, LLAMA_8B, plan_of, problem


def choose(gib, mode="4bit", each_epoch=False, **training):
    plan = plan_of(mode, **training)
    plan = plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"each_epoch": each_epoch})})
    return Candidate(choose_plan(plan, problem(gib), problem(gib).target.limit), problem(gib))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("gib", [12, 16, 24, 80])
def test_cache_fills_the_memory_that_training_leaves(gib, fast):
    chosen = choose(gib, fast_path=fast)
    without = Candidate(with_training(chosen.plan, cached_layers=0), chosen.problem)
    cached, limit = chosen.plan.training.cached_layers, TIGHT_MEMORY_FRACTION * chosen.problem.target.free
    one_layer = layer_weight_bytes(LLAMA_8B, chosen.memory_config)
    assert one_layer == 2 * LLAMA_8B.num_linear_weights // LLAMA_8B.num_layers
    assert chosen.training_peak - without.training_peak == cached * one_layer
    assert not cached or chosen.training_peak <= limit
    assert cached == LLAMA_8B.num_layers or chosen.training_peak + one_layer > limit
    phases = zip(chosen.phases, without.phases, strict=True)
    assert all(phase == other for phase, other in phases if phase.name != "train")


@pytest.mark.parametrize("gib", [12, 16, 24])
def test_less_recomputation_is_worth_more_than_the_cache(gib):
    chosen = choose(gib, fast_path=True, micro_batch_tokens=2048)
    without = choose(gib, fast_path=True, micro_batch_tokens=2048, memory="unlimited")
    assert chosen.plan.training.gradient_checkpointing == without.plan.training.gradient_checkpointing
    recomputed = with_training(chosen.plan, gradient_checkpointing=True, cached_layers=LLAMA_8B.num_layers)
    kept = with_training(chosen.plan, gradient_checkpointing=False, cached_layers=0)
    seconds = [Candidate(plan, chosen.problem).seconds_per_step for plan in (kept, recomputed)]
    assert seconds[0] < seconds[1]


def test_each_cached_layer_makes_a_step_faster():
    chosen = choose(80, fast_path=True, gradient_checkpointing=True)
    seconds = [
        Candidate(with_training(chosen.plan, cached_layers=count), chosen.problem).seconds_per_step
        for count in (0, 1, 16, 32)
    ]
    assert seconds == sorted(seconds, reverse=True)
    assert len(set(seconds)) == 4
    unquantized = Candidate(chosen.plan.model_copy(update={"precision": plan_of("none").precision}), chosen.problem)
    assert seconds[-1] == pytest.approx(unquantized.seconds_per_step)


def test_evaluation_in_training_leaves_less_for_the_cache():
    data = replace(DATA, validation=type(DATA.validation)(*(60 * part for part in vars(DATA.validation).values())))
    target = replace(problem(24), data=data)
    plans = [plan_of(fast_path=True, micro_batch_tokens=256, gradient_checkpointing=False) for _ in range(2)]
    plans[1] = plans[1].model_copy(update={"evaluation": plans[1].evaluation.model_copy(update={"each_epoch": True})})
    after, during = (choose_plan(plan, target, target.target.limit).training.cached_layers for plan in plans)
    assert during < after


@pytest.mark.parametrize("case", [{"mode": "none"}, {"memory": "unlimited"}])
def test_caches_nothing_without_reason(case):
    assert choose(80, fast_path=True, **case).plan.training.cached_layers == 0


def test_caches_nothing_on_a_cpu():
    chosen = choose(80, fast_path=True)
    on_cpu = chosen.plan.model_copy(update={"precision": chosen.plan.precision.model_copy(update={"device": "cpu"})})
    assert choose_plan(on_cpu, chosen.problem, 80 * GIB).training.cached_layers == 0


def test_earlier_plans_have_no_cache():
    stored = json.loads(choose(80, fast_path=True).plan.model_dump_json())
    assert stored["training"].pop("cached_layers") == 32
    plan = Plan.model_validate_json(json.dumps(stored))
    assert cached_weight_bytes(LLAMA_8B, Candidate(plan, problem(80)).memory_config) == 0


def test_cache_is_no_setting_of_a_recipe():
    chosen = choose(80, fast_path=True)
    assert format_overrides(with_training(chosen.plan, cached_layers=0), chosen.plan) == []
    estimate = make_estimate(
        chosen.plan, chosen.problem, base="8B", origin="this machine", weight_bytes=None, download_bytes=0
    )
    assert estimate.as_dict()["chosen"]["cached_layers"] == 32
    assert "dequantized weights of 32 cached" in format_estimate(estimate)
    assert estimate.verdict == "fits"
