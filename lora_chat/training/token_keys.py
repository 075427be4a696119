"""Keys of the tokens of a micro-batch, from which the random numbers of training are computed.

A token's key is a function of the seed, the optimizer step, the ids of its dialogue and its position in the dialogue.
It does not depend on the micro-batch, on the process that computes it, or on padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lora_chat.data.encoding.encode import IGNORE_INDEX
from lora_chat.training.counter_random import mix, mix_integer, nth_output


@dataclass(frozen=True)
class TokenKeys:
    """The keys of a micro-batch's tokens."""

    keys: torch.Tensor
    """Key of each token: int64 (rows, tokens)."""
    lengths: torch.Tensor
    """Number of tokens of each token's dialogue, up to the last trained one: (rows, tokens) or (rows, 1)."""

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], seed: int, step: int) -> "TokenKeys":
        """Return the keys of a packed or padded batch in an optimizer step.

        Equal dialogues of a step have equal keys. A packed batch must not share a prefix, because the key of a token
        depends on its whole dialogue. Tokens after the last trained one do not change a key, because packed batches
        leave them out.
        """
        assert not batch.get("shared_prefix")
        ids = batch["input_ids"]
        dialogues, positions, counted = _locate_tokens(batch)
        # A sum of hashes does not depend on the order of the additions, because integers are added exactly.
        hashes = mix(mix(positions) + ids).masked_fill(~counted, 0)
        digests = torch.zeros(dialogues.shape[0] * dialogues.shape[1], dtype=torch.int64, device=ids.device)
        digests.index_add_(0, dialogues.flatten(), hashes.flatten())
        lengths = torch.zeros_like(digests).index_add_(0, dialogues.flatten(), counted.flatten().to(torch.int64))
        dialogue_keys = mix(digests + mix_integer(mix_integer(seed) + step))
        return cls(nth_output(dialogue_keys[dialogues], positions), lengths[dialogues].clamp_(min=1))

    def to(self, device: torch.device) -> "TokenKeys":
        """Return the keys on a device."""
        return TokenKeys(self.keys.to(device), self.lengths.to(device))


def _locate_tokens(batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return for each token the number of its dialogue, its position in it, and whether it counts for the key."""
    ids = batch["input_ids"]
    if "packed_cu_seqlens" in batch:
        lengths = torch.tensor(batch["packed_cu_seqlens"]).diff()
        dialogues = torch.arange(len(lengths)).repeat_interleave(lengths)[None].to(ids.device)
        return dialogues, batch["position_ids"], torch.ones_like(ids, dtype=torch.bool)
    dialogues = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    is_token = batch.get("attention_mask", torch.ones_like(ids)).bool()
    positions = is_token.cumsum(1) - 1
    if "labels" not in batch:
        return dialogues, positions, is_token
    is_trained = batch["labels"] != IGNORE_INDEX
    before_end = is_trained.flip(1).cumsum(1).flip(1) > 0
    return dialogues, positions, is_token & (before_end | ~is_trained.any(1, keepdim=True))
