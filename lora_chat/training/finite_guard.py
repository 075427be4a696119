"""A trainer callback that looks at loss and gradient before the optimizer sees them."""

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import NotFiniteError


class FiniteGuard(TrainerCallback):
    """Raises NotFiniteError before a step that would spoil the adapter; what was learned so far stays."""

    def __init__(self) -> None:
        self.trainer: Any = None
        """Set once the trainer exists; it keeps the loss and the rows of its last step."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        loss = float(self.trainer.last_loss)
        if not math.isfinite(loss) or not bool(norms.isfinite().all()):
            kind = "gradient" if math.isfinite(loss) else "loss"
            raise NotFiniteError(
                f"Training went wrong at step {state.global_step + 1}: its {kind} is not a number.\n"
                f"{self.trainer.describe_last_step()}"
                "The optimizer has not seen it. Try a lower learning rate: "
                f"--set training.learning_rate={args.learning_rate / 4:g}"
            )
