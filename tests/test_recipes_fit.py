"""The GPU recipes name bases whose weights fit their card; shapes from the models' published configs."""

import pytest

from lora_chat.planning.hardware import Hardware
from lora_chat.planning.plan import make_plan
from lora_chat.planning.recipe_file import read_recipe

# hidden, feed-forward, layers, key/value width, vocabulary, tied embeddings
SHAPES = {
    "Qwen/Qwen2.5-3B-Instruct": (2048, 11008, 36, 256, 151936),
    "meta-llama/Llama-3.2-3B-Instruct": (3072, 8192, 28, 1024, 128256),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (2048, 8192, 24, 2048, 49152),
}
PARAMETERS = {
    "Qwen/Qwen2.5-3B-Instruct": 3.09e9,
    "meta-llama/Llama-3.2-3B-Instruct": 3.21e9,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.71e9,
}
BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0, "none": 2.0}


@pytest.mark.parametrize(
    ("recipe", "gigabytes", "stated"),
    [("gpu-8gb-4bit", 8, 2.1), ("gpu-12gb-8bit", 12, 3.6), ("gpu-24gb-none", 24, 3.4)],
)
def test_weights_take_what_the_recipe_says_and_leave_most_of_the_card(recipe, gigabytes, stated):
    path = f"recipes/{recipe}.yaml"
    plan = make_plan(read_recipe(path), Hardware("cuda", "test", gigabytes * 10**9, True, 4))
    hidden, forward, layers, kv, vocabulary = SHAPES[plan.base.name]
    linear = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * forward)
    embedding = vocabulary * hidden  # tied with the head in all three
    assert linear + embedding == pytest.approx(PARAMETERS[plan.base.name], rel=0.01)
    weights = linear * BYTES[plan.precision.mode] + embedding * 2
    assert weights / 1e9 == pytest.approx(stated, abs=0.1)
    assert weights < gigabytes * 1e9 / 2
    assert plan.training.gradient_accumulation_steps * plan.training.micro_batch_size == 16
