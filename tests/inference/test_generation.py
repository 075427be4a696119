"""Replies to a batch of prompts equal the replies to single prompts, at any batch size."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_chat.inference import generation
from lora_chat.models.shape import read_shape

PROMPTS = [[5 + i, 9, 40 + i, 7] * (1 + i % 3) for i in range(11)]


@pytest.fixture
def model(random_base):
    return AutoModelForCausalLM.from_pretrained(random_base("llama", 8.0), dtype=torch.float32).eval()


def test_replies_do_not_depend_on_the_batch_size(model):
    alone = generation.generate_ids(model, 0, PROMPTS, [2], 6, batch_size=1)
    assert generation.generate_ids(model, 0, PROMPTS, [2], 6) == alone
    assert generation.generate_ids(model, 0, PROMPTS, [2], 6, batch_size=4) == alone


def test_the_size_of_keys_and_values_limits_the_batch(model, monkeypatch):
    shape = read_shape(model.config.to_dict(), "")
    bytes_per_prompt = generation.kv_cache_bytes_per_token(shape, 4) * (12 + 6)
    monkeypatch.setattr(generation, "KV_CACHE_LIMIT_BYTES", 3 * bytes_per_prompt)
    sizes = []
    stock = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **options: sizes.append(len(options["input_ids"])) or stock(**options)
    )
    replies = generation.generate_ids(model, 0, PROMPTS, [2], 6)
    assert sizes == [3, 3, 3, 2]
    assert len(replies) == len(PROMPTS)


def is_contiguous(states):
    """Check strides as PyTorch's `matmul` does: a slice with one row reports contiguity and is copied all the same."""
    return states.stride()[0] == states.stride()[1] * states.shape[1]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["several", "one"])
def test_the_head_gets_contiguous_states(model, prompts):
    """Otherwise PyTorch copies the head's weights once for each prompt. If PyTorch stops, remove the hook."""
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(is_contiguous(inputs[0])))
    generation.generate_ids(model, 0, prompts, [2], 3)
    assert not all(seen)  # as Transformers passes them
    seen.clear()
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(is_contiguous(inputs[0])))
    generation.generate_ids(model, 0, prompts, [2], 3)
    assert all(seen[1::2])


BASE_SETTINGS = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 3.0,
    "min_length": 30,
    "min_new_tokens": 6,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 9,
    "bad_words_ids": [[token] for token in range(20, 200)],
    "suppress_tokens": [*range(20, 200)],
    "begin_suppress_tokens": [*range(20, 200)],
    "sequence_bias": [[[40], 50.0]],
    "exponential_decay_length_penalty": [1, 5.0],
    "num_return_sequences": 1,
    "renormalize_logits": True,
    "temperature": 0.1,
    "guidance_scale": 1.5,
    "cache_implementation": "static",
    "max_length": 20,
}


@pytest.mark.parametrize("is_adapted", [False, True])
def test_replies_ignore_the_generation_settings_of_the_base(model, tiny_tokenizer, is_adapted):
    from peft import LoraConfig, get_peft_model

    if is_adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    inner = model.get_base_model() if is_adapted else model
    plain = generation.generate_ids(model, 0, PROMPTS, [2], 6)
    streamed = generation.stream_reply(model, tiny_tokenizer, PROMPTS[0], [2], 6, lambda text: None)
    inner.generation_config.update(**BASE_SETTINGS)
    before = inner.generation_config
    prompt = torch.tensor(PROMPTS[:1])
    options = {"do_sample": False, "max_new_tokens": 6, "cache_implementation": None, "guidance_scale": None}
    settings = type(before)(**options, pad_token_id=0)
    changed = inner.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    assert changed[0, len(PROMPTS[0]) :].tolist() != plain[0]  # Transformers takes unset fields from the model
    assert generation.generate_ids(model, 0, PROMPTS, [2], 6) == plain
    assert generation.stream_reply(model, tiny_tokenizer, PROMPTS[0], [2], 6, lambda text: None) == streamed
    assert inner.generation_config is before
