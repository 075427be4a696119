"""Prompts longer than a sliding window share nothing, even where replies need not keep their bits, as on a GPU."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.inference.generation import generate_ids
from tests.current_architectures import TEXT
from tests.inference.continuous.served_bases import ask, make_prompts

WINDOW = 200
"""Longer than all prompts of the check when a model is loaded."""


def make_model():
    ids = {"vocab_size": 300, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    settings = {**TEXT["gemma3_text"], "sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 2}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **settings, **ids)).float().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def test_the_beginning_of_a_long_prompt_is_not_read_without_the_window():
    model = make_model()
    first, second, short = make_prompts((320, 40, 60), 290)
    prompts = [first, [*first[:280], *second], short, [*short[:40], *second], [*short, *first]]
    expected = [generate_ids(model, 0, [prompt], (), 6)[0] for prompt in prompts]
    assert len(set(map(tuple, expected))) > 2
    generator = BatchGenerator(model, 0, BatchLimits(max_cache_tokens=2000, exact_prefixes=False))
    try:
        assert [ask(generator, prompt, num_tokens=6).wait().ids for prompt in prompts] == expected
        assert generator.statistics().reused_tokens == 32  # only of the short prompt
    finally:
        generator.close(5)
