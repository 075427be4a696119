"""Adapters with parts beside LoRA share a base without changing each other's replies or the base's."""

import itertools
import os

import pytest

from lora_chat.config.recipe import AdapterSection
from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.models.named_adapters import add_adapter, remove_adapter
from tests.inference.continuous.served_bases import SECTION, ask, make_prompts, make_served_base

ON_DEMAND = pytest.mark.skipif(not os.environ.get("LORA_CHAT_ALL_BASES"), reason="on demand")
PROMPTS = make_prompts((5, 30, 17))
WHOLE = ("lm_head", "input_layernorm")
CASES = {
    "parts": ("qwen2", "none", [{"bias": "lora_only"}, {"bias": "lora_only", "modules_to_save": WHOLE}]),
    "biases": ("gpt2", "none", [{"bias": "lora_only"}, {"bias": "lora_only", "rank": 2}]),
    "modules": ("llama", "none", [{"modules_to_save": WHOLE}, {"modules_to_save": ("embed_tokens",)}]),
    "rows": ("llama", "none", [{"trainable_tokens": (7, 9)}, {"trainable_tokens": (7, 30, 31)}]),
    "experts": ("mixtral", "none", [{"experts": True, "rank": 2}]),
    "conv1d": ("gpt2", "none", [{"variant": "dora"}, {"target_modules": ("c_attn",)}]),
    "4bit": ("llama", "4bit", [{"rank": 8}, {"target_modules": ("q_proj",)}]),
    "8bit": ("llama", "8bit", [{"rank": 8}, {"target_modules": ("q_proj",)}]),
}
DEFAULT = ("parts",)


@pytest.mark.parametrize("case", [pytest.param(n, marks=() if n in DEFAULT else ON_DEMAND) for n in CASES])
def test_each_adapter_replies_as_if_it_were_the_only_one(case, random_base, tmp_path):
    architecture, mode, fields = CASES[case]
    sections = {str(number): AdapterSection(**{"rank": 4} | values) for number, values in enumerate(fields)}
    if case != "experts":
        sections = {"plain": SECTION} | sections
    prompts = PROMPTS if case not in DEFAULT else PROMPTS[1:]
    served = make_served_base(random_base(architecture, 8.0), sections, tmp_path, mode=mode)
    generator, numbers = BatchGenerator(served.load(), 0, BatchLimits(max_cache_tokens=2000)), itertools.count(1)

    def attach(name):
        def add(model):
            generator.model, attached = add_adapter(model, served.stored[name], next(numbers))
            return attached

        return generator.run_between_steps(add)

    def detach(name):
        def remove(model):
            generator.model = remove_adapter(model, name)

        generator.run_between_steps(remove)

    try:
        names = {None: None} | {name: attach(name) for name in served.stored}
        for _ in range(2):
            asked = [(prompt, name) for prompt in prompts for name in names]
            replies = [ask(generator, prompt, names[name], 10) for prompt, name in asked]
            for (prompt, name), reply in zip(asked, replies, strict=True):
                assert reply.wait().ids == served.reply(name, prompt, 10), name
            # Another adapter of the same kind takes the memory of the one that is removed.
            last = list(served.stored)[-1]
            detach(names[last])
            names[last] = attach(last)
        for name in served.stored:
            detach(names[name])
        assert ask(generator, PROMPTS[1], None, 10).wait().ids == served.reply(None, PROMPTS[1], 10)
    finally:
        generator.close(10)
