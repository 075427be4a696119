"""Checks of the stock path, which trains padded batches with TRL's LM head, on architectures outside of the table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_chat.models.architectures import find_architecture
from lora_chat.models.logits import compute_logits
from lora_chat.processes.group import ProcessGroup
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.training.fast_path.check_packing import MAX_ROUNDING_DIFFERENCE, relative_difference, without_dropout

if TYPE_CHECKING:
    from peft import PeftModel

_MAX_SAMPLE_TOKENS = 48
_MAX_HEAD_DIFFERENCE = 0.01
"""Largest mean difference of log-probabilities that rounding explains, relative to their mean."""


@dataclass(frozen=True)
class StockPath:
    """How padded batches are computed."""

    uses_own_logits: bool = False
    """Whether the loss is computed from the model's own logits, because TRL's LM head gives others."""
    splits_rows: bool = False
    """Whether rows are computed one by one, because the model's logits depend on padding."""

    @property
    def notes(self) -> list[str]:
        """Return messages for the user."""
        head = "The loss is computed from the model's own logits, which take more memory."
        rows = "Dialogues are trained one by one, because this model reads padding as text. Training is slower."
        return [head] * self.uses_own_logits + [rows] * self.splits_rows

    def agree(self, group: ProcessGroup) -> "StockPath":
        """Return the same for all processes: a way that one of them needs, each can take."""
        needs = group.exchange([self.uses_own_logits, self.splits_rows])
        return StockPath(*(any(column) for column in zip(*needs, strict=True)))

    def split(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a padded batch as it is, or each row without its padding."""
        if not self.splits_rows or len(inputs["input_ids"]) == 1:
            return [inputs]
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [
            {name: values[row : row + 1, :length] for name, values in inputs.items()}
            for row, length in enumerate(lengths)
        ]


@torch.no_grad()
def find_stock_path(model: "PeftModel", ids: Sequence[int]) -> StockPath:
    """Return how to compute padded batches. The model has TRL's LM head; `ids` are the tokens of any dialogue."""
    if find_architecture(model.config.model_type).layer_family or len(ids) < 2:
        return StockPath()
    sample = list(ids[:_MAX_SAMPLE_TOKENS])
    with without_dropout(model):
        return StockPath(uses_own_logits=_has_other_head(model, sample), splits_rows=_reads_padding(model, sample))


def _has_other_head(model: "PeftModel", ids: list[int]) -> bool:
    """Return whether TRL's LM head gives other log-probabilities than the model.

    It multiplies hidden states with the head's weights and knows the usual scales and soft caps, but not those of every
    architecture (https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/utils.py, `add_fused_lm_head`).
    """
    row = torch.tensor([ids], device=model.device)
    logits = compute_logits(model, torch.arange(len(ids) - 1, device=row.device), input_ids=row)
    expected = logits.float().log_softmax(-1).gather(-1, row[:, 1:, None]).squeeze(-1)
    try:
        actual = model(input_ids=row, labels=row, fused_lm_head=True).log_probs.float()
    except Exception as error:  # a model whose parts TRL does not find
        if is_out_of_memory(error):
            raise
        return True
    difference = float((actual - expected).abs().mean())
    return not difference <= _MAX_HEAD_DIFFERENCE * max(1.0, float(expected.abs().mean()))


def _reads_padding(model: "PeftModel", ids: list[int]) -> bool:
    """Return whether a row's logits change in a batch that TRL's collator pads on the right."""
    short = ids[: max(1, len(ids) // 2)]
    positions = torch.arange(len(short), device=model.device)

    def compute_short_row(padding: int) -> torch.Tensor:
        """Return the logits of the shorter row for an id of the padding."""
        num_padding = len(ids) - len(short)
        padded = torch.tensor([ids, short + [padding] * num_padding], device=model.device)
        mask = torch.tensor([[1] * len(ids), [1] * len(short) + [0] * num_padding], device=model.device)
        return compute_logits(model, positions, input_ids=padded, attention_mask=mask)[1].float()

    first, second = compute_short_row(ids[0]), compute_short_row(ids[-1])
    alone = compute_logits(model, positions, input_ids=torch.tensor([short], device=model.device))[0].float()
    differences = (relative_difference(first, alone), relative_difference(second, alone))
    return not max(math.inf if value != value else value for value in differences) <= MAX_ROUNDING_DIFFERENCE
