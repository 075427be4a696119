"""Callback that refuses an optimizer step or a checkpoint with non-finite values."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import DataError, NonFiniteError
from lora_chat.training.callbacks.checkpoint import CheckpointCallback
from lora_chat.training.fast_path.packed_batch import unpack_rows

if TYPE_CHECKING:
    from lora_chat.training.trainer import PackedSFTTrainer

DialogueLocator = Callable[[Sequence[Sequence[int]]], Sequence[tuple[str, int]]]
"""Function from token ids of dialogues, which may lack their ends, to the file and line of each."""
_MAX_LISTED_DIALOGUES = 20


class NonFiniteGuard(TrainerCallback):
    """Check before each optimizer step and each checkpoint. It must come after `checkpoints` among the callbacks."""

    def __init__(
        self, trainer: "PackedSFTTrainer", locate_dialogues: DialogueLocator, checkpoints: CheckpointCallback | None
    ) -> None:
        self._trainer = trainer
        self._locate_dialogues = locate_dialogues
        self._checkpoints = checkpoints

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start recording the batches of a new step."""
        self._trainer.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise NonFiniteError or DataError for a step that would destroy the adapter or train nothing."""
        if not int(self._trainer.step_tokens):
            raise DataError(
                f"Step {state.global_step + 1} has no supervised token, so it would train nothing.\n"
                f"{self._format_dialogues()}"
                "Fix: inspect these dialogues with lora-chat data, and add replies or remove the dialogues."
            )
        gradients = [p.grad for p in self._trainer.model.parameters() if p.grad is not None]
        loss = float(self._trainer.step_loss)
        if not math.isfinite(loss) or not _all_finite(gradients):
            kind = "gradient" if math.isfinite(loss) else "loss"
            raise NonFiniteError(
                f"Step {state.global_step + 1} has a non-finite {kind}; the update was skipped.\n"
                f"{self._format_dialogues()}{self._suggest_fix(args)}"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise NonFiniteError before a checkpoint with non-finite weights is written."""
        weights = [p for p in self._trainer.model.parameters() if p.requires_grad]
        if self._checkpoints and control.should_save and not _all_finite(weights):
            raise NonFiniteError(
                f"Step {state.global_step} left non-finite weights in the adapter; they were not saved.\n"
                f"{self._format_dialogues()}{self._suggest_fix(args)}"
            )

    def _format_dialogues(self) -> str:
        """Format the files and lines of the dialogues in the current step."""
        rows = [ids for batch in self._trainer.step_batches for ids in unpack_rows(batch)]
        locations = sorted(set(self._locate_dialogues(rows)))
        lines: dict[str, list[str]] = {}
        for path, line in locations[:_MAX_LISTED_DIALOGUES]:
            lines.setdefault(path, []).append(str(line))
        listed = "; ".join(
            f"{path}, line{'s' * (len(numbers) > 1)} {', '.join(numbers)}" for path, numbers in lines.items()
        )
        hidden = len(locations) - _MAX_LISTED_DIALOGUES
        return f"Its dialogues: {listed}{f' and {hidden} more' if hidden > 0 else ''}.\n" if locations else ""

    def _suggest_fix(self, args: TrainingArguments) -> str:
        """Return the command that continues with a lower learning rate."""
        lower = f"--set training.learning_rate={args.learning_rate / 4:g}"
        checkpoint = self._checkpoints.latest_checkpoint if self._checkpoints else None
        if checkpoint is None:
            return f"No adapter was saved. Fix: try a lower learning rate, {lower}"
        return (
            f"The checkpoint of step {checkpoint.step} is intact. Fix: inspect these dialogues, or continue from it "
            f"with a lower learning rate: --resume {lower} --accept-change training.learning_rate"
        )


def _all_finite(tensors: list[torch.Tensor]) -> bool:
    """Return whether all values are finite; one norm per tensor is cheaper than a test of each value."""
    return bool(torch.stack(torch._foreach_norm(tensors)).isfinite().all())
