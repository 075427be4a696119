"""Tokens that one adapter adds to a base are unknown to the others and to the base."""

import itertools
import os

import pytest
import torch

from lora_chat.config.recipe import AdapterSection
from lora_chat.errors import IntegrityError
from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.adapter_files import read_adapter, save_adapter
from lora_chat.models.base_model import load_tokenizer
from lora_chat.models.identity import compute_identity
from lora_chat.models.named_adapters import add_adapter
from tests.inference.continuous.served_bases import SECTION, ask, make_prompts, make_served_base

pytestmark = pytest.mark.skipif(not os.environ.get("LORA_CHAT_ALL_BASES"), reason="on demand")


def test_only_the_adapter_that_adds_tokens_replies_with_them(random_base, tmp_path):
    served = make_served_base(random_base("llama", 8.0), {"plain": SECTION}, tmp_path)
    first = served.load().get_input_embeddings().weight.shape[0]
    ids = (first, first + 1)
    section = AdapterSection(rank=2, trainable_tokens=ids, new_tokens=("<x>", "<y>"))
    model = attach_adapter(served.load(), section, new_ids=ids)
    for number, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data = parameter.data.float() + 0.3 * noise
    identity = compute_identity(served.base, load_tokenizer(served.base))
    identity = identity.model_copy(update={"new_tokens": dict(zip(("<x>", "<y>"), ids, strict=True))})
    save_adapter(model, tmp_path / "new", identity, "{{ messages }}", "card")
    served.stored["new"] = read_adapter(tmp_path / "new")
    generator, numbers = BatchGenerator(served.load(), 0, BatchLimits(max_cache_tokens=2000)), itertools.count(1)

    def attach(name):
        def add(model):
            generator.model, attached = add_adapter(model, served.stored[name], next(numbers))
            return attached

        return generator.run_between_steps(add)

    try:
        names = {None: None, "plain": attach("plain"), "new": attach("new")}
        prompts = make_prompts((5, 30, 17))
        asked = [(prompt, name) for prompt in prompts for name in names] + [([*prompts[1][:10], *ids, 9], "new")]
        replies = [ask(generator, prompt, names[name], 12) for prompt, name in asked]
        for (prompt, name), reply in zip(asked, replies, strict=True):
            assert reply.wait().ids == served.reply(name, prompt, 12)
            assert name == "new" or max(reply.ids) < first
        assert max(max(reply.ids) for reply in replies) >= first
        with pytest.raises(IntegrityError, match="Fix: load it before"):
            attach("plain")
        assert ask(generator, prompts[0], names["plain"], 12).wait().ids == served.reply("plain", prompts[0], 12)
    finally:
        generator.close(5)
