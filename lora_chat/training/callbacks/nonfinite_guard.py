"""A trainer callback that looks at a step before the optimizer sees it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import DataError, NotFiniteError
from lora_chat.training.fast_path.packed_batch import unflatten

Locate = Callable[[Sequence[Sequence[int]]], Sequence[tuple[str, int]]]
"""Ids of dialogues, perhaps without their ends -> file and line of each."""
_MOST_NAMED = 20


class StepGuard(TrainerCallback):
    """Raises NotFiniteError or DataError before a step that would spoil the adapter; what was learned stays."""

    def __init__(self, locate: Locate, last_commit: Callable[[], int | None]) -> None:
        self._locate = locate
        self._last_commit = last_commit
        self.trainer: Any = None
        """Set once the trainer exists; it remembers the step under way."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not int(self.trainer.step_tokens):
            raise DataError(
                f"Step {state.global_step + 1} has no supervised token: it would train nothing.\n"
                f"{self._dialogues()}Look at them with lora-chat data, and give them replies or leave them out."
            )
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        loss = float(self.trainer.step_loss)
        if not math.isfinite(loss) or not bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            kind = "gradient" if math.isfinite(loss) else "loss"
            raise NotFiniteError(
                f"Training went wrong at step {state.global_step + 1}: its {kind} is not a number.\n"
                f"{self._dialogues()}The optimizer has not seen it. {self._remedy(args)}"
            )

    def check_weights(self, args: TrainingArguments, state: TrainerState) -> None:
        """Raise NotFiniteError rather than commit weights that are not numbers."""
        weights = [p for p in self.trainer.model.parameters() if p.requires_grad]
        if not bool(torch.stack(torch._foreach_norm(weights)).isfinite().all()):
            raise NotFiniteError(
                f"Training went wrong at step {state.global_step}: weights of the adapter are not numbers.\n"
                f"{self._dialogues()}They were not saved. {self._remedy(args)}"
            )

    def _dialogues(self) -> str:
        rows = [ids for batch in self.trainer.step_batches for ids in unflatten(batch)]
        places = sorted(set(self._locate(rows)))
        lines: dict[str, list[str]] = {}
        for path, line in places[:_MOST_NAMED]:
            lines.setdefault(path, []).append(str(line))
        named = "; ".join(f"{path}, line{'s' * (len(some) > 1)} {', '.join(some)}" for path, some in lines.items())
        more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
        return f"Its dialogues: {named}{more}.\n" if places else ""

    def _remedy(self, args: TrainingArguments) -> str:
        lower = f"--set training.learning_rate={args.learning_rate / 4:g}"
        step = self._last_commit()
        if step is None:
            return f"No adapter was saved. Try a lower learning rate: {lower}"
        return (
            f"The checkpoint of step {step} is whole. Look at these dialogues, or go on from there with a lower "
            f"learning rate: --resume {lower} --accept-change training.learning_rate"
        )
