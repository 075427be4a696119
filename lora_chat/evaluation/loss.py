"""Loss and perplexity on supervised tokens; which questions were answered with the right fact."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.evaluation.chunked_loss import summed_loss

if TYPE_CHECKING:
    import torch


def evaluate_loss(
    model: "torch.nn.Module", rows: Sequence[EncodedDialogue], on_row: Callable[[], None] = lambda: None
) -> float:
    """Mean negative log-likelihood of a supervised token, in nats, over all rows.

    One dialogue at a time, with logits for supervised positions alone, and of these not too many at once: memory
    stays small.
    """
    import torch

    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for row in rows:
        next_ids = torch.tensor(row.labels[1:])
        keep = (next_ids != IGNORE_INDEX).nonzero().squeeze(1)
        with torch.inference_mode():
            ids = torch.tensor([row.input_ids], device=device)
            total += float(summed_loss(model, ids, keep.to(device), next_ids[keep].to(device)))
        count += keep.numel()
        on_row()
    return total / count


def perplexity(loss: float) -> float:
    """exp(loss): among how many equally likely tokens the model hesitates."""
    return math.exp(loss) if loss < 700 else math.inf
