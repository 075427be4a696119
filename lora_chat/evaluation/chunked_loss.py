"""Cross entropy without the logits of a whole dialogue: at a vocabulary of 128,000 they take 1.3 MB a token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MOST_LOGITS = 2**25
"""That are made at once."""
_NUM_CHECKED_POSITIONS = 4
"""Positions at which chunks are compared with the model's own logits."""
_RELATIVE_TOLERANCE = 1e-3
"""Of the largest logit: another shape of product rounds otherwise, a scale or a cap differs by far more."""


def summed_loss(model: Any, ids: torch.Tensor, keep: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy of `next_ids` (supervised,) at positions `keep` of `ids` (1, tokens), in fp32.

    Logits are made in chunks where the head is a plain product of the last states, which is tried each time on the
    first positions; else all at once.
    """
    head = model.get_output_embeddings()
    rows = max(1, MOST_LOGITS // getattr(head, "out_features", MOST_LOGITS))
    if keep.numel() <= rows:
        return _sum_cross_entropy(model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0], next_ids)
    with _truncate_head_input(head) as head_inputs:
        first_logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0]
    if not head_inputs or not _logits_agree(head(head_inputs[0][:, :_NUM_CHECKED_POSITIONS])[0], first_logits):
        return _sum_cross_entropy(model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0], next_ids)
    states, places = head_inputs[0][0], range(0, len(next_ids), rows)
    parts = [_sum_cross_entropy(head(states[i : i + rows]), next_ids[i : i + rows]) for i in places]
    return torch.stack(parts).sum()


def _sum_cross_entropy(logits: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), next_ids, reduction="sum")


@contextmanager
def _truncate_head_input(head: Any) -> Iterator[list[torch.Tensor]]:
    """Have the head see the first positions alone; the states of all (1, supervised, hidden) are kept."""
    head_inputs: list[torch.Tensor] = []

    def first(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        head_inputs.append(inputs[0])
        return (inputs[0][:, :_NUM_CHECKED_POSITIONS], *inputs[1:])

    hook = head.register_forward_pre_hook(first)
    try:
        yield head_inputs
    finally:
        hook.remove()


def _logits_agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    limit = _RELATIVE_TOLERANCE * float(theirs.abs().max().float())
    return ours.shape == theirs.shape and float((ours.float() - theirs.float()).abs().max()) <= limit
