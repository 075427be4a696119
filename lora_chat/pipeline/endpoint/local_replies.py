"""The adapted model and its base on this machine: their greedy replies and the probabilities in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.export.parity.transformers_runner import TransformersRunner
from lora_chat.inference.generation import generate_ids
from lora_chat.models.adapter import without_adapter
from lora_chat.pipeline.endpoint.endpoint_prompts import EndpointPrompt

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

MAX_REPLY_TOKENS = 64
"""Largest number of tokens of a reply that is compared."""


@dataclass(frozen=True)
class LocalReply:
    """The greedy replies of the adapted model and of its base to one prompt, without stop tokens."""

    ids: tuple[int, ...]
    base_ids: tuple[int, ...]
    logprobs: "torch.Tensor"
    """(tokens, vocabulary) of the adapted model for each token of `ids`, and for the one after the last."""
    base_logprobs: "torch.Tensor"
    """The same of the base, after the same tokens."""

    @property
    def has_ended(self) -> bool:
        """Return whether the adapted model ends its reply within the limit."""
        return len(self.ids) < MAX_REPLY_TOKENS


def make_local_replies(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    prompts: Sequence[EndpointPrompt],
) -> list[LocalReply]:
    """Return the replies of the adapted model and of its base."""
    runner = TransformersRunner(model, tokenizer)
    pad = int(tokenizer.pad_token_id)

    def generate() -> list[list[int]]:
        return generate_ids(model, pad, [prompt.ids for prompt in prompts], stop_ids, MAX_REPLY_TOKENS)

    def score(prompt: EndpointPrompt, ids: Sequence[int]) -> "torch.Tensor":
        first = len(prompt.ids) - 1
        logits = runner.logits([*prompt.ids, *ids], range(first, first + len(ids) + 1))
        return logits.double().log_softmax(-1)

    adapted = generate()
    logprobs = [score(prompt, ids) for prompt, ids in zip(prompts, adapted, strict=True)]
    with without_adapter(model):
        base = generate()
        base_logprobs = [score(prompt, ids) for prompt, ids in zip(prompts, adapted, strict=True)]
    return [
        LocalReply(tuple(ids), tuple(base_ids), scores, base_scores)
        for ids, base_ids, scores, base_scores in zip(adapted, base, logprobs, base_logprobs, strict=True)
    ]
