"""Requests that share steps get the replies that they get as the only request."""

import itertools
import os

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


def detach(generator, name):
    """Remove an adapter as the server does."""

    def remove(model):
        generator.model = remove_adapter(model, name)

    generator.run_between_steps(remove)


ON_DEMAND = pytest.mark.skipif(not os.environ.get("LORA_CHAT_ALL_BASES"), reason="on demand")


@pytest.fixture(scope="module", params=["bfloat16", pytest.param("float32", marks=ON_DEMAND)])
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
    asked = [(prompt, choices[number % len(choices)]) for number, prompt in enumerate([*PROMPTS, *PROMPTS[:3]])]
    expected = [served.reply(adapter, prompt, 12) for prompt, adapter in asked]
    assert len({tuple(reply) for reply in expected}) > 7
    replies = [ask(generator, prompt, names[adapter]) for prompt, adapter in asked]
    assert [reply.wait().ids for reply in replies] == expected
    assert {reply.finish.reason for reply in replies} == {"length"}
    statistics = generator.statistics()
    assert statistics.is_exact
    assert not statistics.single_reason
    assert statistics.generated_tokens == 12 * len(asked)
    # Another adapter after one was removed.
    detach(generator, names["plain"])
    names["plain"] = attach(generator, served.stored["scaled"], numbers)
    replies = [ask(generator, prompt, names["plain"]) for prompt in PROMPTS]
    assert [reply.wait().ids for reply in replies] == [served.reply("scaled", prompt, 12) for prompt in PROMPTS]


def test_prompts_that_begin_alike_are_read_once_and_answered_alike(served):
    generator = BatchGenerator(served.load(), 0, BatchLimits(max_running=4, max_cache_tokens=1000))
    try:
        adapter = attach(generator, served.stored["plain"], itertools.count(1))
        (long,) = make_prompts((150,))
        prompts = [long[:100], [*long[:60], *PROMPTS[1]], [*long[:60], *PROMPTS[3]], long, long]
        for prompt in prompts:
            assert ask(generator, prompt, adapter).wait().ids == served.reply("plain", prompt, 12)
        statistics = generator.statistics()
        assert statistics.prefix_hits == 4
        assert statistics.reused_tokens == 48 + 48 + 96 + 150
        # Nothing is shared with the base or with another adapter.
        assert ask(generator, long).wait().ids == served.reply(None, long, 12)
        other = attach(generator, served.stored["scaled"], itertools.count(2))
        assert ask(generator, long, other).wait().ids == served.reply("scaled", long, 12)
        assert generator.statistics().reused_tokens == statistics.reused_tokens
        # Four replies to one prompt at once, and prompts that push the others out.
        together = [ask(generator, long, adapter, number=number) for number in range(4)]
        assert {tuple(reply.wait().ids) for reply in together} == {tuple(served.reply("plain", long, 12))}
        for prompt in make_prompts((300, 290, 310, 280)):
            assert ask(generator, prompt, adapter).wait().ids == served.reply("plain", prompt, 12)
        assert generator.statistics().cache_tokens <= 500
        detach(generator, adapter)
        detach(generator, other)
        assert generator.statistics().cache_tokens == 0
    finally:
        generator.close(10)
