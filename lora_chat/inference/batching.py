"""How many prompts are answered together, and the memory of their keys and values."""

from lora_chat.models.shape import ModelShape

MAX_BATCH_SIZE = 40
"""Prompts that are answered at once (models/generation.py)."""


KV_CACHE_LIMIT_BYTES = 2**29
"""Bytes of keys and values that prompts answered together may take (the same)."""


def kv_cache_bytes_per_token(shape: ModelShape, bytes_per_value: int) -> int:
    """Keys and values of one token in all layers."""
    return 2 * bytes_per_value * shape.kv_size * shape.num_layers


def generation_batch_size(shape: ModelShape, tokens: int, bytes_per_value: int) -> int:
    """How many prompts are answered at once, each with its reply of so many tokens."""
    return max(
        1,
        min(MAX_BATCH_SIZE, KV_CACHE_LIMIT_BYTES // max(1, tokens * kv_cache_bytes_per_token(shape, bytes_per_value))),
    )
