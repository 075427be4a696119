"""Loss and perplexity on supervised tokens."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.evaluation.chunked_loss import summed_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def evaluate_loss(
    model: "PreTrainedModel | PeftModel", rows: Sequence[EncodedDialogue], on_row: Callable[[], None] = lambda: None
) -> float:
    """Return the mean negative log-likelihood of a supervised token over all rows, in nats.

    Dialogues are evaluated one by one, and logits are computed in chunks and only at supervised positions, because this
    takes little memory. `on_row` is called after each row.
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
    """Return exp(loss), or infinity if it overflows."""
    return math.exp(loss) if loss < 700 else math.inf
