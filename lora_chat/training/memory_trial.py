"""The largest micro-batch of the data, tried before the first step: what does not fit fails in the first minute."""

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import MemoryShortError
from lora_chat.planning.plan import TrainingPlan
from lora_chat.training.batching import StepCollator
from lora_chat.training.flat_rows import shared_prefix
from lora_chat.training.system_memory import is_out_of_memory

_SMALLEST_BUDGET = 256
"""Tokens; smaller micro-batches are slow and save little more."""


class MemoryTrial(TrainerCallback):
    """Forward, backward and optimizer on the largest micro-batch; weights, optimizer and dice are as before."""

    def __init__(self, rows: Sequence[Any], lengths: Sequence[int], plan: TrainingPlan) -> None:
        self._rows = rows
        self._lengths = lengths
        """Tokens of each row."""
        self._order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        self._plan = plan
        self.trainer: Any = None
        """Set once the trainer exists."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step >= state.max_steps or self._fits(model, optimizer, self._plan):
            return
        raise MemoryShortError(self._advice(model, optimizer))

    def _fits(self, model: Any, optimizer: Any, plan: TrainingPlan) -> bool:
        """Whether a plan's largest micro-batch can be trained. Whatever else goes wrong is raised."""
        weights = [p for p in model.parameters() if p.requires_grad]
        kept = [p.detach().clone() for p in weights]
        fits = True
        try:
            self.trainer.try_step(self._largest(plan))
            _try_optimizer(optimizer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
        model.zero_grad()
        if not fits:  # what the error held on to is needed for the next try
            gc.collect()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        return fits

    def _largest(self, plan: TrainingPlan) -> dict[str, Any]:
        collator = self.trainer.data_collator
        if not isinstance(collator, StepCollator):
            return dict(collator([self._row(i) for i in self._order[: plan.micro_batch_size]]))
        rows = [self._row(i) for i in self._order[: plan.effective_batch_size]]
        shared = shared_prefix([collator.flat.trim(row) for row in rows]) if collator.flat.share else 0
        most = len(rows) if plan.micro_batch_tokens else plan.micro_batch_size
        left = (plan.micro_batch_tokens or sum(self._lengths)) - shared
        picked: list[dict[str, list[int]]] = []
        for row in rows:
            length = len(row["input_ids"]) - shared
            if not picked or (length <= left and len(picked) < most):
                picked.append(row)
                left -= length
        return {"micro_batches": [collator.flat(picked)]}

    def _row(self, place: int) -> dict[str, list[int]]:
        row = self._rows[place]
        return {"input_ids": row.input_ids, "labels": row.labels}

    def _advice(self, model: Any, optimizer: Any) -> str:
        by_tokens = isinstance(self.trainer.data_collator, StepCollator) and self._plan.micro_batch_tokens is not None
        longest = self._lengths[self._order[0]]
        for plan in _gentler(self._plan, by_tokens, longest):
            if plan.gradient_checkpointing is True and self._plan.gradient_checkpointing is not True:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self._fits(model, optimizer, plan):
                return (
                    f"Out of memory: the largest micro-batch (longest dialogue {longest:,} tokens) does not fit, as "
                    "tried here before training.\nThis fits, with the same dialogues a step and the same result: "
                    f"{_flags(self._plan, plan)}"
                )
        return (
            f"Out of memory: the longest dialogue, {longest:,} tokens, does not fit, alone and with gradient "
            "checkpointing (tried here, before training).\nLeave long ones out (--set data.max_length=N "
            "--set data.over_long=drop), or take a smaller base, or --set quantization.mode=4bit."
        )


def _try_optimizer(optimizer: Any) -> None:
    inner = getattr(optimizer, "optimizer", optimizer)
    if inner.state:
        return  # of a run that goes on: its memory is taken already
    try:
        inner.step()
    finally:
        inner.state.clear()


def _gentler(plan: TrainingPlan, by_tokens: bool, longest: int) -> Iterator[TrainingPlan]:
    """Plans of the same result in smaller pieces, the fastest first; activations are recomputed last."""
    if by_tokens:
        budget = int(plan.micro_batch_tokens or 0)
        while budget > longest and budget // 2 >= _SMALLEST_BUDGET:  # else it holds one dialogue already
            budget //= 2
            plan = plan.model_copy(update={"micro_batch_tokens": budget})
            yield plan
    else:
        whole = plan.effective_batch_size
        for size in (n for n in range(plan.micro_batch_size - 1, 0, -1) if whole % n == 0):
            plan = plan.model_copy(update={"micro_batch_size": size})
            yield plan
    if plan.gradient_checkpointing is not True:
        yield plan.model_copy(update={"gradient_checkpointing": True})


def _flags(before: TrainingPlan, after: TrainingPlan) -> str:
    names = ("micro_batch_tokens", "micro_batch_size", "gradient_checkpointing")
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return " ".join(f"--set training.{name}={str(getattr(after, name)).lower()}" for name in changed)
