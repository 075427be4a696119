"""Callback that tries the largest micro-batch before the first step, so that a run that cannot fit fails early."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.row_lengths import find_largest
from lora_chat.errors import NonFiniteError, OutOfMemoryError
from lora_chat.models.architectures import FINAL_SOFTCAPPING_FIELD
from lora_chat.models.sharded_base import is_sharded
from lora_chat.planning.workload import count_micro_batch_rows, select_largest_rows
from lora_chat.processes.group import current_group
from lora_chat.system.gpu_memory import release_gpu_memory
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.training.fast_path.packed_batch import EncodedIds, count_shared_prefix
from lora_chat.training.loss_scale import FLOAT32_FIX
from lora_chat.training.step_collator import PackedStepCollator
from lora_chat.training.stop_request import TrainingNotStarted
from lora_chat.training.training_run import count_supervised

if TYPE_CHECKING:
    from lora_chat.data.row_lengths import Numbers
    from lora_chat.training.trainer import PackedSFTTrainer
    from lora_chat.training.training_run import EncodedRow

_SHARDED_OUT_OF_MEMORY = (
    "Out of memory: the largest micro-batch does not fit beside the part of the sharded base (tried before training).\n"
    "Fix: --set training.micro_batch_tokens=N with a smaller N, --set training.gradient_checkpointing=true, or more "
    "processes."
)


class MemoryCheckCallback(TrainerCallback):
    """Dry run of the largest micro-batch: forward, backward and optimizer, without lasting effects.

    In fp16 it also refuses a base whose loss overflows. Its gradients may overflow, because the scaler has not found
    its scale; the optimizer is called without the scaler, whose state stays the same.
    """

    def __init__(
        self,
        trainer: "PackedSFTTrainer",
        rows: "Sequence[EncodedRow]",
        lengths: "Numbers",
        plan: TrainingPlan,
        *,
        only_check: bool = False,
    ) -> None:
        self._trainer = trainer
        self._rows = rows
        self._plan = plan
        self._only_check = only_check
        """Whether training must not start even if the micro-batch fits."""
        self._lengths = lengths
        self._longest_first = find_largest(lengths, plan.effective_batch_size).tolist()
        self.fits = True
        """Result of the dry run; True until it fails."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: "torch.nn.Module | None" = None,
        optimizer: "torch.optim.Optimizer | None" = None,
        **kwargs: object,
    ) -> None:
        """Run the check. Raise TrainingNotStarted if the micro-batch does not fit, or if only the check was wanted."""
        assert model is not None
        assert optimizer is not None
        if state.global_step < state.max_steps:
            self.fits = self._try_largest_micro_batches(model, optimizer)
            if not self.fits or self._only_check:
                raise TrainingNotStarted

    def _try_largest_micro_batches(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether the largest micro-batches can be trained. Raise any error other than lack of memory."""
        weights = [p for p in model.parameters() if p.requires_grad]
        fits = True
        try:
            with _allocated_optimizer_state(optimizer, weights), _allocated_sum(weights):
                losses = [self._trainer.dry_run_step(batch) for batch in self._largest_micro_batches()]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if is_sharded(model):
                # The other processes may wait for the layers of this pass, so they cannot try again together.
                raise OutOfMemoryError(_SHARDED_OUT_OF_MEMORY) from error
            fits = False
        fits = not current_group().largest(not fits)  # all processes train with the same plan
        model.zero_grad()
        if fits and self._trainer.args.fp16 and not all(map(math.isfinite, losses)):
            raise NonFiniteError(
                "The base overflows in fp16, which ends at 65,504: the loss of the longest dialogues is non-finite "
                f"before training.\nFix: {FLOAT32_FIX}."
            )
        release_gpu_memory()
        return fits

    def _largest_micro_batches(self) -> Iterator[dict[str, Any]]:
        """Yield the micro-batch with the most tokens and, if it can take more memory, the one with the most loss."""
        collator = self._trainer.data_collator
        if not isinstance(collator, PackedStepCollator):
            count = count_micro_batch_rows(self._plan, current_group().size)
            yield collator.micro_batch_collator([self._row(i) for i in self._longest_first[:count]])
            return
        orders = [self._longest_first]
        if getattr(self._trainer.model.config, FINAL_SOFTCAPPING_FIELD, None):
            # This model computes all logits together, so many supervised tokens can take more than the longest row.
            orders.append(self._find_most_supervised())
        longest: list[int] = []
        for order in orders:
            rows = [collator.trim(self._row(i)) for i in order[: self._plan.effective_batch_size]]
            shared = count_shared_prefix(rows) if collator.micro_batch_collator.share_prefix else 0
            ranking = None if order is self._longest_first else range(len(rows), 0, -1)
            lengths = [len(row["input_ids"]) for row in rows]
            longest = longest or lengths
            processes = current_group().size
            picked = select_largest_rows(lengths, self._plan, shared, ranking, processes=processes, longest=longest)
            yield collator.micro_batch_collator([rows[i] for i in picked])

    def _find_most_supervised(self) -> list[int]:
        """Return the rows of a step with the most supervised tokens; of equal ones the longest come first."""
        sizes = self._lengths.astype(np.int64)
        sizes += count_supervised(self._rows).astype(np.int64) * (int(sizes.max()) + 1)
        order: list[int] = find_largest(sizes, self._plan.effective_batch_size).tolist()
        return order

    def _row(self, index: int) -> EncodedIds:
        """Return a row as the collator takes it."""
        row = self._rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels}


@contextmanager
def _allocated_sum(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Keep the buffer allocated in which several processes sum their gradients (gradient_sum.py)."""
    size = sum(weight.numel() for weight in weights) if current_group().size > 1 else 0
    buffer = torch.empty(size, device=weights[0].device)
    yield
    del buffer


@contextmanager
def _allocated_optimizer_state(optimizer: torch.optim.Optimizer, weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Keep the optimizer's state and all gradients allocated inside, because later steps have them beside activations.

    A resumed optimizer has its state already. The weights keep their values.
    """
    unwrapped = getattr(optimizer, "optimizer", optimizer)
    if unwrapped.state:
        yield
        return
    original_values = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        try:
            unwrapped.step()
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, original_values, strict=True):
                    weight.copy_(value)
        del original_values
        yield
    finally:
        unwrapped.state.clear()
