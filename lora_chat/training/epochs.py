"""Where an epoch ends, as Trainer counts."""

from typing import Any

from transformers import TrainerState, TrainingArguments


def ends_epoch(args: TrainingArguments, state: TrainerState, train_dataloader: Any) -> bool:
    """Whether the optimizer step just done is the last of an epoch, or of training."""
    steps = -(-len(train_dataloader) // args.gradient_accumulation_steps)
    return bool(state.global_step % steps == 0) or state.global_step >= state.max_steps
