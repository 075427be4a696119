"""A trainer callback that looks at a step before the optimizer sees it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import DataError, NonFiniteError
from lora_chat.training.fast_path.packed_batch import unpack_rows

DialogueLocator = Callable[[Sequence[Sequence[int]]], Sequence[tuple[str, int]]]
"""Ids of dialogues, perhaps without their ends -> file and line of each."""
_MAX_LISTED_DIALOGUES = 20


class NonFiniteGuard(TrainerCallback):
    """Raises NonFiniteError or DataError before a step that would spoil the adapter; what was learned stays."""

    def __init__(self, locate_dialogues: DialogueLocator, last_checkpoint_step: Callable[[], int | None]) -> None:
        self._locate_dialogues = locate_dialogues
        self._last_checkpoint_step = last_checkpoint_step
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
                f"{self._format_dialogues()}Look at them with lora-chat data, and give them replies or leave them out."
            )
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        loss = float(self.trainer.step_loss)
        if not math.isfinite(loss) or not bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            kind = "gradient" if math.isfinite(loss) else "loss"
            raise NonFiniteError(
                f"Training went wrong at step {state.global_step + 1}: its {kind} is not a number.\n"
                f"{self._format_dialogues()}The optimizer has not seen it. {self._suggest_fix(args)}"
            )

    def check_weights(self, args: TrainingArguments, state: TrainerState) -> None:
        """Raise NonFiniteError rather than commit weights that are not numbers."""
        weights = [p for p in self.trainer.model.parameters() if p.requires_grad]
        if not bool(torch.stack(torch._foreach_norm(weights)).isfinite().all()):
            raise NonFiniteError(
                f"Training went wrong at step {state.global_step}: weights of the adapter are not numbers.\n"
                f"{self._format_dialogues()}They were not saved. {self._suggest_fix(args)}"
            )

    def _format_dialogues(self) -> str:
        rows = [ids for batch in self.trainer.step_batches for ids in unpack_rows(batch)]
        places = sorted(set(self._locate_dialogues(rows)))
        lines: dict[str, list[str]] = {}
        for path, line in places[:_MAX_LISTED_DIALOGUES]:
            lines.setdefault(path, []).append(str(line))
        named = "; ".join(f"{path}, line{'s' * (len(some) > 1)} {', '.join(some)}" for path, some in lines.items())
        more = f" and {len(places) - _MAX_LISTED_DIALOGUES} more" if len(places) > _MAX_LISTED_DIALOGUES else ""
        return f"Its dialogues: {named}{more}.\n" if places else ""

    def _suggest_fix(self, args: TrainingArguments) -> str:
        lower = f"--set training.learning_rate={args.learning_rate / 4:g}"
        step = self._last_checkpoint_step()
        if step is None:
            return f"No adapter was saved. Try a lower learning rate: {lower}"
        return (
            f"The checkpoint of step {step} is whole. Look at these dialogues, or go on from there with a lower "
            f"learning rate: --resume {lower} --accept-change training.learning_rate"
        )
