"""Bytes that a parity check of a 16-bit model needs beside the weights, from shapes."""

from dataclasses import dataclass

from lora_chat.inference.generation import generation_batch_size, kv_cache_bytes_per_token
from lora_chat.models.shape import ModelShape
from lora_chat.planning.layer_memory import MicroBatch, estimate_layer_passes

_TERMS_BYTES_PER_VALUE = 2
"""Bytes of an activation in `layer_bytes.json`."""


@dataclass(frozen=True)
class ParityWorkload:
    """The largest inputs of a parity check, in tokens."""

    longest: int
    positions: int
    """Largest number of positions of one sample whose logits are computed."""
    prompts: int
    longest_prompt: int
    new_tokens: int
    """Largest number of tokens of a reply."""


def estimate_parity_activations(shape: ModelShape, workload: ParityWorkload, bytes_per_value: int) -> int:
    """Return the bytes of activations, logits, keys and values at the peak of a parity check."""
    scale = bytes_per_value / _TERMS_BYTES_PER_VALUE

    def forward_bytes(batch: MicroBatch) -> int:
        """Return the bytes of a forward pass, in which only the current layer's activations exist."""
        forward, _ = estimate_layer_passes(shape, "read", "none", 0, batch)
        return int(scale * (forward.rest + forward.layer + forward.peak))

    # Logits of one sample in the model's dtype and in fp32.
    logits_bytes = (bytes_per_value + 4) * workload.positions * shape.vocab_size
    reading = forward_bytes(MicroBatch(workload.longest, workload.longest, workload.positions)) + logits_bytes
    # Replies are generated in batches; the prefill reads all prompts of a batch together.
    tokens = workload.longest_prompt + workload.new_tokens
    rows = min(workload.prompts, generation_batch_size(shape, tokens, bytes_per_value))
    prefill = MicroBatch(rows * workload.longest_prompt, workload.longest_prompt, rows)
    cache_bytes = rows * tokens * kv_cache_bytes_per_token(shape, bytes_per_value)
    return max(reading, forward_bytes(prefill) + cache_bytes + 8 * rows * shape.vocab_size)
