"""Comparison of the bases that the processes have in memory, before the first step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lora_chat.errors import IntegrityError
from lora_chat.models.logits import compute_logits
from lora_chat.processes.group import ProcessGroup
from lora_chat.training.fast_path.check_packing import MAX_ROUNDING_DIFFERENCE, without_dropout

if TYPE_CHECKING:
    from peft import PeftModel

_MAX_SAMPLE_TOKENS = 48
_MIN_SPREAD = 0.5
"""Smallest spread of predictions, in nats, that differences are compared with; that of a good base is several nats."""


def check_same_base(model: "PeftModel", ids: Sequence[int], group: ProcessGroup) -> None:
    """Raise IntegrityError in all processes if one predicts a text otherwise than the first, beyond rounding.

    Files are compared by their digests, and adapters after each step. A base is in no exchange, so that weights which
    were damaged in memory, or a card that computes wrongly, would only show as a wrong share of the gradient. `ids` are
    the tokens of a long dialogue.
    """
    if group.size == 1 or len(ids) < 2:
        return
    row = torch.tensor([ids[:_MAX_SAMPLE_TOKENS]], device=model.device)
    positions = torch.arange(row.shape[1] - 1, device=model.device)
    with torch.no_grad(), without_dropout(model):
        logits = compute_logits(model, positions, input_ids=row).float()
    predictions = logits.log_softmax(-1).gather(-1, row[:, 1:, None]).flatten()
    everyone = torch.tensor(group.exchange(predictions.tolist()))
    if not everyone[0].isfinite().all():
        return  # the first step reports it
    spread = max(float(everyone[0].std(correction=0)), _MIN_SPREAD)
    differences = (everyone - everyone[0]).square().mean(1).sqrt() / spread
    different = [n for n, value in enumerate(differences.tolist(), 1) if not value <= MAX_ROUNDING_DIFFERENCE]
    if different:
        raise IntegrityError(
            "The processes of this run do not compute the same with one base: the predictions of "
            f"{', '.join(map(str, different))} of {group.size} differ from those of the first. Nothing was trained. "
            "Fix: test the memory and the cards of their machines, and use the same packages and kind of device."
        )
