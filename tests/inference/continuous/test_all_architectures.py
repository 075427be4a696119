"""Greedy replies of shared steps equal plain generation in every architecture, or requests are answered singly."""

import os

import pytest

from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits
from tests.current_architectures import MULTIMODAL, TEXT, make_current_base
from tests.inference.continuous.served_bases import ask, make_prompts, make_served_base

ON_DEMAND = pytest.mark.skipif(not os.environ.get("LORA_CHAT_ALL_BASES"), reason="on demand")
_COMMON = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "gpt2", "mixtral", "qwen3_moe")
_MORE = ("gpt_oss", "olmo2", "olmo3", "opt", "bloom", "gpt_neox", "stablelm", "cohere2")
_WITHOUT_REPLIES = ("qwen3_next",)
"""Small configs that plain generation cannot answer."""
ALONE = {"falcon": "attention", "mamba": "states", "gemma4_text": "share", "lfm2": "states", "bloom": "attention"}
DEFAULT = ("gemma3_text", "lfm2")
NAMES = [*_COMMON, *_MORE, *TEXT, *MULTIMODAL]
PROMPTS = make_prompts((5, 30, 70, 150))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in DEFAULT else ON_DEMAND) for n in NAMES if n not in _WITHOUT_REPLIES]
)
def test_replies_equal_plain_generation(name, dtype, random_base, tmp_path):
    if dtype == "float32" and name in DEFAULT and not os.environ.get("LORA_CHAT_ALL_BASES"):
        pytest.skip("on demand")
    is_current = name in TEXT or name in MULTIMODAL
    path = make_current_base(name, tmp_path / "base") if is_current else random_base(name, 8.0)
    served = make_served_base(path, {}, tmp_path, dtype=dtype)
    generator = BatchGenerator(served.load(), 0, BatchLimits(max_running=3, max_cache_tokens=2000))
    try:
        prompts = [*PROMPTS, [*PROMPTS[2][:40], *PROMPTS[1]], PROMPTS[1]]
        replies = [ask(generator, prompt) for prompt in prompts]
        for prompt, reply in zip(prompts, replies, strict=True):
            assert reply.wait().ids == served.reply(None, prompt, 12)
            assert reply.finish.reason == "length"
        statistics = generator.statistics()
        assert ALONE.get(name, "") in statistics.single_reason
        assert bool(statistics.cache_capacity) != bool(statistics.single_reason)
        if name in ("llama", "gemma3_text", "gpt_oss"):
            assert not statistics.single_reason
    finally:
        generator.close(5)
