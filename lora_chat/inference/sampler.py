"""Sampling of next tokens that gives each prompt its own random numbers, whatever prompts are in its batch.

The highest sum of scaled log-probability and Gumbel noise is a sample from the distribution (Gumbel 1954; Maddison,
Tarlow and Minka, arXiv 1411.0030). So noise is added to the logits and generation stays greedy: Transformers draws from
one generator for a whole batch, which would make a reply depend on the size of its batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GenerationSection

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessorList

_MIN_TEMPERATURE = 1e-6
"""Smallest divisor of logits; at a lower temperature the most probable token is as certain."""


def make_processors(generation: GenerationSection, numbers: Sequence[int]) -> "LogitsProcessorList":
    """Return the processors of a batch: none for greedy replies. `numbers` are those of the prompts, (batch,)."""
    import numpy as np
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    if generation.is_greedy:
        return LogitsProcessorList()

    class Sampler(LogitsProcessor):
        """Processor whose highest score is a sample."""

        def __init__(self) -> None:
            self._randoms = [np.random.default_rng([generation.seed, number]) for number in numbers]

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Return the scores (batch, vocabulary) of the next tokens with noise."""
            scores = keep_nucleus(scale_scores(scores, generation.temperature), generation.top_p)
            # From 1 down to 2**-53: small values are exact in fp32, and they are the noise of the tokens that win.
            uniform = np.stack([1 - random.random(scores.shape[-1]) for random in self._randoms])
            exponential = -torch.log1p(-torch.from_numpy(uniform.astype(np.float32)).to(scores.device))
            return scores - torch.log(exponential)

    return LogitsProcessorList([Sampler()])


def scale_scores(scores: "torch.Tensor", temperature: float) -> "torch.Tensor":
    """Return scores (..., vocabulary) divided by a temperature; the highest is 0, so that none overflows."""
    highest = scores.amax(dim=-1, keepdim=True)
    return (scores - highest) / max(temperature, _MIN_TEMPERATURE)


def keep_nucleus(scores: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """Return scores (..., vocabulary) with -inf outside the most probable tokens whose sum reaches `top_p`."""
    import torch

    if top_p >= 1:
        return scores
    ordered, order = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    before[..., 0] = 0  # the most probable token always stays
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return scores.masked_fill(outside, -torch.inf)
