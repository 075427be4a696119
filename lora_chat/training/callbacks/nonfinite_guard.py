"""Callback that refuses an optimizer step or a checkpoint with non-finite values."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import DataError, IntegrityError, NonFiniteError
from lora_chat.training.callbacks.checkpoint import CheckpointCallback
from lora_chat.training.loss_scale import FLOAT32_FIX, LossScale
from lora_chat.training.step_collator import split_rows

if TYPE_CHECKING:
    from lora_chat.training.trainer import PackedSFTTrainer

logger = logging.getLogger(__name__)

DialogueLocator = Callable[[Sequence[Sequence[int]]], Sequence[tuple[str, int]]]
"""Function from token ids of dialogues, which may lack their ends, to the file and line of each."""
_MAX_LISTED_DIALOGUES = 20


class NonFiniteGuard(TrainerCallback):
    """Check before each optimizer step and each checkpoint. It must come after `checkpoints` among the callbacks.

    A non-finite loss is always refused. A non-finite gradient is refused too, except in fp16: there the gradient scaler
    skips the step and halves its scale, up to 10 steps in a row and down to a scale of 1. A training whose steps were
    all skipped is refused at its end.
    """

    def __init__(
        self,
        trainer: "PackedSFTTrainer",
        locate_dialogues: DialogueLocator,
        checkpoints: CheckpointCallback | None,
        loss_scale: LossScale | None = None,
    ) -> None:
        self._trainer = trainer
        self._locate_dialogues = locate_dialogues
        self._checkpoints = checkpoints
        self._loss_scale = loss_scale
        """Counter of the steps that the gradient scaler skips; None without a scaler."""
        self._has_checked_experts = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the record of a new step."""
        self._trainer.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise NonFiniteError or DataError for a step that would destroy the adapter or train nothing."""
        gradients = [p.grad for p in self._trainer.model.parameters() if p.grad is not None]
        loss, all_finite = self._trainer.read_step(_test_finite(gradients))
        if not self._trainer.step_tokens:
            raise DataError(
                f"Step {state.global_step + 1} has no supervised token, so it would train nothing.\n"
                f"{self._format_dialogues()}"
                "Fix: inspect these dialogues with lora-chat data, and add replies or remove the dialogues."
            )
        if not self._has_checked_experts:
            _check_experts_are_trained(self._trainer.model)
            self._has_checked_experts = True
        is_overflow = not all_finite
        if self._loss_scale and math.isfinite(loss):
            self._loss_scale.record_step(skipped=is_overflow)
            is_overflow = self._loss_scale.has_collapsed
        if not math.isfinite(loss) or is_overflow:
            kind = "gradient" if math.isfinite(loss) else "loss"
            raise NonFiniteError(
                f"Step {state.global_step + 1} has a non-finite {kind}{self._format_skips()}; the update was skipped.\n"
                f"{self._format_dialogues()}{self._suggest_fix(args)}"
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        lr_scheduler: "torch.optim.lr_scheduler.LRScheduler | None" = None,
        **kwargs: object,
    ) -> None:
        """Raise NonFiniteError before a checkpoint with non-finite weights is written.

        After a step that the scaler skipped, the learning rate is set to the next one of the schedule. Trainer does it
        after every other step, and after a skipped one only if the optimizer itself skips, as fused AdamW does.
        """
        if self._loss_scale and self._trainer.accelerator.optimizer_step_was_skipped:
            assert lr_scheduler is not None
            lr_scheduler.step()
        weights = [p for p in self._trainer.model.parameters() if p.requires_grad]
        if self._checkpoints and control.should_save and not bool(_test_finite(weights)):
            raise NonFiniteError(
                f"Step {state.global_step} left non-finite weights in the adapter; they were not saved.\n"
                f"{self._format_dialogues()}{self._suggest_fix(args)}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Log the number of skipped steps. Raise NonFiniteError if a finished training has skipped all of them."""
        if not self._loss_scale:
            return
        if self._loss_scale.skipped_steps >= state.max_steps:
            raise NonFiniteError(
                f"All {state.max_steps} steps have non-finite gradients in fp16, so nothing was trained.\n"
                f"Fix: train more steps, because the first ones only find the scale, or {FLOAT32_FIX}."
            )
        if note := self._loss_scale.format_note(state.global_step):
            logger.info(note)

    def _format_skips(self) -> str:
        """Format the number of steps that the gradient scaler has skipped before this one."""
        earlier = self._loss_scale.skipped_in_a_row - 1 if self._loss_scale else 0
        return f", like the {earlier} before it, although the gradient scaler reduced its scale" if earlier > 0 else ""

    def _format_dialogues(self) -> str:
        """Format the files and lines of the dialogues in the current step."""
        batch = self._trainer.step_batch
        locations = sorted(set(self._locate_dialogues(split_rows(batch) if batch else [])))
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
        alternative = f"; or {FLOAT32_FIX}" if self._loss_scale else ""
        if checkpoint is None:
            return f"No adapter was saved. Fix: try a lower learning rate, {lower}{alternative}"
        return (
            f"The checkpoint of step {checkpoint.step} is intact. Fix: inspect these dialogues, or continue from it "
            f"with a lower learning rate: --resume {lower} --accept-change training.learning_rate{alternative}"
        )


def _check_experts_are_trained(model: torch.nn.Module) -> None:
    """Raise IntegrityError if LoRA on experts has no gradient at all.

    An expert to which no token was routed has a gradient of zero. None means that the model's code reads the weights
    without PEFT's wrapper, so that LoRA has no effect.
    """
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "parameter_name", None), str):  # only PEFT's wrapper of a parameter has one
            continue
        trained = [p for part, p in module.named_parameters() if part.startswith("lora_B.") and p.requires_grad]
        if any(parameter.grad is None for parameter in trained):
            raise IntegrityError(
                f"The experts of this base cannot be trained: {name} has no gradient, because the model's code reads "
                f"its {module.parameter_name} without PEFT. Fix: --set adapter.experts=false"
            )


def _test_finite(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return whether all values are finite, on their device; a norm of each is cheaper than a test of each value."""
    return torch.stack(torch._foreach_norm(tensors)).isfinite().all() if tensors else torch.tensor(True)
