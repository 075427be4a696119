"""Cross entropy in chunks, because at a vocabulary of 128,000 the logits of one token take 1.3 MB."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lora_chat.config.limits import MAX_EVALUATION_LOGITS
from lora_chat.models.logits import compute_logits

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_NUM_CHECKED_POSITIONS = 4
"""Positions at which chunks are compared with the model's own logits."""
_RELATIVE_TOLERANCE = 1e-3
"""Tolerance relative to the largest logit.

Products of another shape round differently; a scale or a soft cap changes the logits by far more."""


def sum_supervised(
    model: "PreTrainedModel | PeftModel", ids: torch.Tensor, keep: torch.Tensor, next_ids: torch.Tensor
) -> torch.Tensor:
    """Return the summed cross entropy of `next_ids` (supervised,) at positions `keep` of `ids` (1, tokens), in fp32.

    The second value is the number of positions at which the most likely token is the next one; the shape is (2,).

    Logits are computed in chunks if the LM head is a plain product of the last hidden states. This is checked on the
    first positions of every call; otherwise the model computes all logits together.
    """
    head = model.get_output_embeddings()
    rows = max(1, MAX_EVALUATION_LOGITS // getattr(head, "out_features", MAX_EVALUATION_LOGITS))
    if keep.numel() <= rows:
        return _sum_logits(compute_logits(model, keep, input_ids=ids)[0], next_ids)
    # One forward pass gives the model's logits of the first positions, and the hidden states of all.
    with _truncate_head_input(head) as head_inputs:
        first_logits = compute_logits(model, keep, input_ids=ids)[0]
    has_states = bool(head_inputs) and head_inputs[0].shape[1] == keep.numel()
    if not has_states or not _logits_agree(head(head_inputs[0][:, :_NUM_CHECKED_POSITIONS])[0], first_logits):
        return _sum_logits(compute_logits(model, keep, input_ids=ids)[0], next_ids)
    states, starts = head_inputs[0][0], range(0, len(next_ids), rows)
    parts = [_sum_logits(head(states[i : i + rows]), next_ids[i : i + rows]) for i in starts]
    return torch.stack(parts).sum(dim=0)


def _sum_logits(logits: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
    """Return the summed cross entropy and the number of right top tokens of logits (positions, vocabulary)."""
    loss = torch.nn.functional.cross_entropy(logits.float(), next_ids, reduction="sum")
    return torch.stack([loss, (logits.argmax(dim=-1) == next_ids).sum().to(loss.dtype)])


@contextmanager
def _truncate_head_input(head: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Pass only the first positions to the head, and yield a list that receives all states (1, supervised, hidden)."""
    head_inputs: list[torch.Tensor] = []

    def truncate(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Record the states and return the first ones."""
        head_inputs.append(inputs[0])
        return (inputs[0][:, :_NUM_CHECKED_POSITIONS], *inputs[1:])

    hook = head.register_forward_pre_hook(truncate)
    try:
        yield head_inputs
    finally:
        hook.remove()


def _logits_agree(chunk_logits: torch.Tensor, model_logits: torch.Tensor) -> bool:
    """Return whether both logits are equal up to rounding."""
    limit = _RELATIVE_TOLERANCE * float(model_logits.abs().max().float())
    return (
        chunk_logits.shape == model_logits.shape
        and float((chunk_logits.float() - model_logits.float()).abs().max()) <= limit
    )
