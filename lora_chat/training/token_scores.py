"""The loss of each supervised token of a validation batch, and whether the model predicts it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenScores:
    """The supervised tokens of some rows; each field is (supervised,)."""

    rows: torch.Tensor
    """Number of the row of each token within its batch."""
    losses: torch.Tensor
    """Cross entropy of each token, in nats."""
    hits: torch.Tensor
    """Whether the token is the most likely one."""


def score_logits(rows: torch.Tensor, logits: torch.Tensor, ids: torch.Tensor) -> TokenScores:
    """Return the scores of tokens `ids` (supervised,) by logits (supervised, vocabulary)."""
    losses = torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")
    return TokenScores(rows, losses, logits.argmax(-1) == ids)


def concatenate_scores(parts: Sequence[TokenScores]) -> TokenScores:
    """Return the scores of several parts of a batch in their order."""
    return TokenScores(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.losses for part in parts]),
        torch.cat([part.hits for part in parts]),
    )
