"""Noise on the embeddings in training (NEFTune, arXiv 2310.05914).

Transformers' own hook divides by the length of the row that the model gets, which is that of a whole packed batch, so
the noise would shrink with the size of the micro-batch. Here it is divided by the length of each dialogue.
"""

import torch

from lora_chat.training.counter_random import iterate_random_bits
from lora_chat.training.token_keys import TokenKeys


def add_embedding_noise(embeddings: torch.Tensor, tokens: TokenKeys, stream: int, alpha: float) -> torch.Tensor:
    """Return embeddings (rows, tokens, size) with uniform noise from the keys of the tokens."""
    size = embeddings.shape[-1]
    noise = torch.empty(tokens.keys.numel(), size, dtype=torch.float32, device=embeddings.device)
    for rows, bits in iterate_random_bits(tokens.keys.flatten(), stream, size):
        torch.add(bits, 0.5, out=noise[rows])
    # The numbers are between -2**15 and 2**15.
    scale = alpha / 2**15 / (tokens.lengths.to(torch.float32) * size).sqrt()
    return embeddings + (noise.view(embeddings.shape) * scale[..., None]).to(embeddings.dtype)
