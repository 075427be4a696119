"""Choice of the next token of each request, as `generate_ids` chooses it for a single prompt."""

import math
from typing import TYPE_CHECKING

from lora_chat.inference.continuous.request import GeneratedToken, GenerationRequest
from lora_chat.inference.sampler import make_processors

if TYPE_CHECKING:
    import torch


class NonFiniteLogitsError(Exception):
    """A model whose next token cannot be chosen."""


class TokenChooser:
    """The random numbers and log-probabilities of one request."""

    def __init__(self, request: GenerationRequest) -> None:
        self._processors = make_processors(request.generation, [request.number])
        self._is_greedy, self._num_top = request.generation.is_greedy, request.top_logprobs

    def choose(self, logits: "torch.Tensor") -> GeneratedToken:
        """Return the next token for logits (vocabulary,) in fp32. Raise NonFiniteLogitsError."""
        scores = logits[None]
        if not self._is_greedy:
            scores = self._processors(scores.new_empty(1, 0).long(), scores)
        return self.describe(int(scores.argmax(dim=-1)), logits)

    def describe(self, token: int, logits: "torch.Tensor") -> GeneratedToken:
        """Return a token with its log-probability and its most probable alternatives, which a request may ask for."""
        # An infinite or undefined value among the logits is the highest one, and the first that `argmax` finds.
        if not math.isfinite(float(logits[token])) or math.isnan(float(logits.sum())):
            raise NonFiniteLogitsError("the model returned non-finite logits")
        if self._num_top is None:
            return GeneratedToken(token, math.nan)
        logprobs = logits.log_softmax(dim=-1)
        values, ids = logprobs.topk(min(self._num_top, len(logprobs)))
        top = tuple(zip(map(int, ids.tolist()), values.tolist(), strict=True))
        return GeneratedToken(token, float(logprobs[token]), top)
