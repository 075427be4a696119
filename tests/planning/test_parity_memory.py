"""The memory of a parity check grows with its inputs and with the bytes of a value."""

from dataclasses import replace

from lora_chat.models.shape import read_shape
from lora_chat.planning.parity_memory import ParityWorkload, estimate_parity_activations

SHAPE = read_shape(
    {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "test",
)
WORKLOAD = ParityWorkload(longest=2048, positions=256, prompts=16, longest_prompt=512, new_tokens=32)


def test_contains_the_logits_of_the_longest_sample():
    assert estimate_parity_activations(SHAPE, WORKLOAD, 2) > 6 * 256 * 128_256


def test_contains_the_keys_and_values_of_long_prompts():
    many = replace(WORKLOAD, longest_prompt=2048)
    assert estimate_parity_activations(SHAPE, many, 2) > estimate_parity_activations(SHAPE, WORKLOAD, 2) + 2**28


def test_doubles_with_fp32():
    narrow, wide = (estimate_parity_activations(SHAPE, WORKLOAD, size) for size in (2, 4))
    assert 1.3 * narrow < wide <= 2 * narrow
