"""Requests that share steps get the replies that they get as the only request."""

import itertools

import pytest

from lora_chat.config.recipe import AdapterSection
from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.models.named_adapters import add_adapter, remove_adapter
from tests.inference.continuous.served_bases import SECTION, ask, make_prompts, make_served_base

PROMPTS = make_prompts((5, 40, 17, 64, 9, 3, 30, 12))
SECTIONS = {
    "plain": SECTION,
    "scaled": AdapterSection(rank=8, alpha=24.0, variant="rslora"),
    "partial": AdapterSection(rank=2, target_modules=("q_proj", "down_proj")),
    "dora": AdapterSection(rank=4, variant="dora"),
}


def attach(generator, stored, numbers):
    """Attach an adapter as the server does, and return its name in the generator."""

    def add(model):
        generator.model, name = add_adapter(model, stored, next(numbers))
        return name

    return generator.run_between_steps(add)


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def served(request, random_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return make_served_base(random_base("llama", 8.0), SECTIONS, folder, dtype=request.param)


@pytest.fixture(scope="module")
def generator(served):
    generator = BatchGenerator(served.load(), 0, BatchLimits(max_running=8, max_cache_tokens=2000))
    yield generator
    generator.close(10)


def test_mixed_adapters_reply_as_each_of_them_alone(served, generator):
    numbers = itertools.count(1)
    names = {None: None} | {name: attach(generator, stored, numbers) for name, stored in served.stored.items()}
    choices = [None, *served.stored]
    asked = [(prompt, choices[number % len(choices)]) for number, prompt in enumerate(PROMPTS * 2)]
    expected = [served.reply(adapter, prompt, 12) for prompt, adapter in asked]
    assert len({tuple(reply) for reply in expected}) > 8
    replies = [ask(generator, prompt, names[adapter]) for prompt, adapter in asked]
    assert [reply.wait().ids for reply in replies] == expected
    assert {reply.finish.reason for reply in replies} == {"length"}
    statistics = generator.statistics()
    assert statistics.is_exact
    assert not statistics.single_reason
    assert statistics.generated_tokens == 12 * len(asked)
    # Another adapter after one was removed.
    generator.run_between_steps(lambda model: remove_adapter(model, names["plain"]))
    names["plain"] = attach(generator, served.stored["scaled"], numbers)
    replies = [ask(generator, prompt, names["plain"]) for prompt in PROMPTS]
    assert [reply.wait().ids for reply in replies] == [served.reply("scaled", prompt, 12) for prompt in PROMPTS]
