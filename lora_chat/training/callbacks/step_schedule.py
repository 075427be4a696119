"""Steps after which a checkpoint is written or the validation set is measured."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import TrainerState, TrainingArguments

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


def is_epoch_end(args: TrainingArguments, state: TrainerState, train_dataloader: "DataLoader[object] | None") -> bool:
    """Return whether the last optimizer step was the last of an epoch or of training."""
    assert train_dataloader is not None
    steps = -(-len(train_dataloader) // args.gradient_accumulation_steps)
    return bool(state.global_step % steps == 0) or state.global_step >= state.max_steps


@dataclass(frozen=True)
class MeasurementSchedule:
    """The steps after which the validation set is measured."""

    each_epoch: bool = False
    every_steps: int | None = None

    def is_due(
        self, args: TrainingArguments, state: TrainerState, train_dataloader: "DataLoader[object] | None"
    ) -> bool:
        """Return whether the validation set is measured after the last step; the last of training always is."""
        if self.every_steps and (state.global_step % self.every_steps == 0 or state.global_step >= state.max_steps):
            return True
        return self.each_epoch and is_epoch_end(args, state, train_dataloader)
