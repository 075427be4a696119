"""How many prompts are answered together, and the memory of their keys and values."""

from lora_chat.models.shape import ModelShape

ANSWERED_TOGETHER = 40
"""Prompts that are answered at once (models/generation.py)."""


MOST_CACHED = 2**29
"""Bytes of keys and values that prompts answered together may take (the same)."""


def cached_bytes(shape: ModelShape, width: int) -> int:
    """Keys and values of one token in all layers."""
    return 2 * width * shape.key * shape.layer_count


def answered_together(shape: ModelShape, tokens: int, width: int) -> int:
    """How many prompts are answered at once, each with its reply of so many tokens."""
    return max(1, min(ANSWERED_TOGETHER, MOST_CACHED // max(1, tokens * cached_bytes(shape, width))))
