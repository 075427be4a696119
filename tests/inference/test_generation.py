"""Replies of several prompts together are those of each alone, whatever memory they are given."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_chat.inference import batching, generation
from lora_chat.models.shape import read_shape

PROMPTS = [[5 + i, 9, 40 + i, 7] * (1 + i % 3) for i in range(11)]


@pytest.fixture
def model(random_base):
    return AutoModelForCausalLM.from_pretrained(random_base("llama", 8.0), dtype=torch.float32).eval()


def test_batches_of_any_size_say_the_same(model):
    alone = generation.generate_ids(model, 0, PROMPTS, [2], 6, batch_size=1)
    assert generation.generate_ids(model, 0, PROMPTS, [2], 6) == alone
    assert generation.generate_ids(model, 0, PROMPTS, [2], 6, batch_size=4) == alone


def test_keys_and_values_bound_the_batch(model, monkeypatch):
    shape = read_shape(model.config.to_dict(), "")
    each = batching.kv_cache_bytes_per_token(shape, 4) * (12 + 6)
    monkeypatch.setattr(batching, "KV_CACHE_LIMIT_BYTES", 3 * each)
    sizes = []
    stock = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: sizes.append(len(given["input_ids"])) or stock(**given))
    replies = generation.generate_ids(model, 0, PROMPTS, [2], 6)
    assert sizes == [3, 3, 3, 2]
    assert len(replies) == len(PROMPTS)


def in_one_piece(states):
    """As PyTorch's `matmul` asks: a slice with one row calls itself contiguous and is copied for nevertheless."""
    return states.stride()[0] == states.stride()[1] * states.shape[1]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["several", "one"])
def test_the_head_gets_states_in_one_piece(model, prompts):
    """Else PyTorch copies its weights once for each prompt (generation.py); when that ends, so may the hook."""
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(in_one_piece(inputs[0])))
    generation.generate_ids(model, 0, prompts, [2], 3)
    assert not all(seen)  # as transformers hands them over
    seen.clear()
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(in_one_piece(inputs[0])))
    generation.generate_ids(model, 0, prompts, [2], 3)
    assert all(seen[1::2])
