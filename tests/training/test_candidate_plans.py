"""Plans that need less memory come in the order of the time that they cost."""

from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import DataSection, Recipe, TrainingSection
from lora_chat.system.hardware import Hardware
from lora_chat.training.candidate_plans import candidate_plans, changed_settings, format_smaller_plan, update_identity


def plan_of(cached_layers, **training):
    recipe = Recipe(data=DataSection(train="x"), training=TrainingSection(fast_path=True, **training))
    plan = make_plan(recipe, Hardware("cuda", "a card", 8 * 2**30, True, 4)).training
    return plan.model_copy(update={"cached_layers": cached_layers})


def test_drops_the_cache_before_anything_else():
    plan = plan_of(7, micro_batch_tokens=1024, gradient_checkpointing=False)
    first, uncached, *smaller = candidate_plans(plan, packed=True, longest=300)
    assert first == plan
    assert uncached == plan.model_copy(update={"cached_layers": 0})
    assert [other.micro_batch_tokens for other in smaller] == [512, 256, 256]
    assert not any(other.cached_layers for other in smaller)


def test_dropping_the_cache_changes_no_setting_of_the_recipe():
    plan = plan_of(7, micro_batch_tokens=1024)
    _, uncached, smaller, *_ = candidate_plans(plan, packed=True, longest=300)
    assert changed_settings(plan, uncached) == {}
    assert format_smaller_plan(plan, uncached, 300).endswith("the same result: dequantized weights are not cached.")
    assert format_smaller_plan(plan, smaller, 300).endswith("the same result: training.micro_batch_tokens becomes 512.")
    identity = {"training.micro_batch_tokens": 1024}
    assert update_identity(uncached, identity) == identity
