"""Loss, perplexity and right top tokens at supervised positions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.system.activity import note_activity

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RowLosses:
    """The supervised tokens of each row: summed loss in nats, number of right top tokens, and number of tokens."""

    losses: tuple[float, ...]
    right_tokens: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Return the mean loss of a supervised token, in nats."""
        return sum(self.losses) / sum(self.tokens)

    def select(self, rows: Sequence[bool]) -> "RowLosses":
        """Return the losses of the rows that are true in `rows`."""
        return RowLosses(
            tuple(compress(self.losses, rows)),
            tuple(compress(self.right_tokens, rows)),
            tuple(compress(self.tokens, rows)),
        )


def measure_rows(
    model: "PreTrainedModel | PeftModel", rows: Sequence[EncodedDialogue], on_row: Callable[[], None] = lambda: None
) -> RowLosses:
    """Return the negative log-likelihood of the supervised tokens of each row.

    Dialogues are evaluated one by one, and logits are computed in chunks and only at supervised positions, because this
    takes little memory. `on_row` is called after each row.
    """
    import torch

    from lora_chat.evaluation.chunked_loss import sum_supervised

    model.eval()
    device = next(model.parameters()).device
    measured: list[tuple[float, int, int]] = []
    for row in rows:
        next_ids = torch.tensor(row.labels[1:])
        keep = (next_ids != IGNORE_INDEX).nonzero().squeeze(1)
        with torch.inference_mode():
            ids = torch.tensor([row.input_ids], device=device)
            loss, right = sum_supervised(model, ids, keep.to(device), next_ids[keep].to(device)).tolist()
        measured.append((loss, int(right), keep.numel()))
        on_row()
        note_activity()
    losses, right_tokens, tokens = zip(*measured, strict=True)
    return RowLosses(losses, right_tokens, tokens)


def evaluate_loss(
    model: "PreTrainedModel | PeftModel", rows: Sequence[EncodedDialogue], on_row: Callable[[], None] = lambda: None
) -> float:
    """Return the mean negative log-likelihood of a supervised token over all rows, in nats."""
    return measure_rows(model, rows, on_row).mean


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity if it overflows."""
    return math.exp(loss) if loss < 700 else math.inf
