"""The largest micro-batch of the data, tried before the first step: what does not fit fails in the first minute."""

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.config.plan import TrainingPlan
from lora_chat.errors import OutOfMemoryError
from lora_chat.models.architectures import FINAL_SOFTCAPPING_FIELD
from lora_chat.planning.workload import select_largest_rows
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.training.fast_path.packed_batch import count_shared_prefix
from lora_chat.training.fast_path.packing import StepCollator


class RetryWithSmallerPlan(Exception):
    """The largest micro-batch does not fit, but that of this plan does: it was tried."""

    def __init__(self, plan: TrainingPlan, note: str) -> None:
        super().__init__(note)
        self.plan = plan


def update_identity(plan: TrainingPlan, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, with the training settings that it has now."""
    fields = {f"training.{name}": value for name, value in plan.model_dump(mode="json").items()}
    return {**identity, **{name: value for name, value in fields.items() if name in identity}}


_MIN_MICRO_BATCH_TOKENS = 256
"""Tokens; smaller micro-batches are slow and save little more."""


class MemoryCheckCallback(TrainerCallback):
    """Forward, backward and optimizer on the largest micro-batch; weights, optimizer and dice are as before."""

    def __init__(
        self, rows: Sequence[Any], lengths: Sequence[int], plan: TrainingPlan, adjustable_settings: Collection[str] = ()
    ) -> None:
        self._rows = rows
        self._adjustable_settings = adjustable_settings
        """Settings that are left open: where they are enough, training begins again with smaller ones."""
        self._lengths = lengths
        """Tokens of each row."""
        self._longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
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
        smaller_plan = self._find_smaller_plan(model, optimizer)
        if smaller_plan is not None and set(_changed_settings(self._plan, smaller_plan)) <= set(
            self._adjustable_settings
        ):
            raise RetryWithSmallerPlan(
                smaller_plan,
                f"Out of memory: {self._describe_micro_batch()} does not fit. "
                f"{_format_changes(self._plan, smaller_plan)}",
            )
        raise OutOfMemoryError(self._out_of_memory_message(smaller_plan))

    def _fits(self, model: Any, optimizer: Any, plan: TrainingPlan) -> bool:
        """Whether a plan's largest micro-batch can be trained. Whatever else goes wrong is raised."""
        weights = [p for p in model.parameters() if p.requires_grad]
        original_values = [p.detach().clone() for p in weights]
        fits = True
        try:
            for batch in self._largest_micro_batches(
                plan, computes_all_logits=bool(getattr(model.config, FINAL_SOFTCAPPING_FIELD, None))
            ):
                self.trainer.dry_run_step(batch)
            _dry_run_optimizer(optimizer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        with torch.no_grad():
            for weight, value in zip(weights, original_values, strict=True):
                weight.copy_(value)
        model.zero_grad()
        if not fits:  # what the error held on to is needed for the next try
            gc.collect()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        return fits

    def _largest_micro_batches(self, plan: TrainingPlan, *, computes_all_logits: bool) -> Iterator[dict[str, Any]]:
        collator = self.trainer.data_collator
        if not isinstance(collator, StepCollator):
            yield dict(collator([self._row(i) for i in self._longest_first[: plan.micro_batch_size]]))
            return
        orders = [self._longest_first]
        if computes_all_logits:  # all logits at once: many tokens with loss can take more than the longest row
            orders.append(sorted(self._longest_first, key=lambda i: -self._rows[i].supervised_tokens))
        for order in orders:
            rows = [collator.micro_batch_collator.trim(self._row(i)) for i in order[: plan.effective_batch_size]]
            shared = count_shared_prefix(rows) if collator.micro_batch_collator.share_prefix else 0
            ranking = None if order is self._longest_first else range(len(rows), 0, -1)
            picked = select_largest_rows([len(row["input_ids"]) for row in rows], plan, shared, ranking)
            yield {"micro_batches": [collator.micro_batch_collator([rows[i] for i in picked])]}

    def _row(self, index: int) -> dict[str, list[int]]:
        row = self._rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels}

    def _find_smaller_plan(self, model: Any, optimizer: Any) -> TrainingPlan | None:
        by_tokens = isinstance(self.trainer.data_collator, StepCollator) and self._plan.micro_batch_tokens is not None
        for plan in _smaller_plans(self._plan, by_tokens, self._longest_length):
            if plan.gradient_checkpointing is True and self._plan.gradient_checkpointing is not True:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self._fits(model, optimizer, plan):
                return plan
        return None

    @property
    def _longest_length(self) -> int:
        return self._lengths[self._longest_first[0]]

    def _describe_micro_batch(self) -> str:
        return f"the largest micro-batch (longest dialogue {self._longest_length:,} tokens)"

    def _out_of_memory_message(self, smaller_plan: TrainingPlan | None) -> str:
        if smaller_plan is not None:
            flags = " ".join(
                f"--set training.{name}={value}" for name, value in _changed_settings(self._plan, smaller_plan).items()
            )
            return (
                f"Out of memory: {self._describe_micro_batch()} does not fit, as tried here before training.\n"
                f"This fits, with the same dialogues a step and the same result: {flags}"
            )
        return (
            f"Out of memory: the longest dialogue, {self._longest_length:,} tokens, does not fit, alone and with "
            f"gradient "
            "checkpointing (tried here, before training).\nLeave long ones out (--set data.max_length=N "
            "--set data.over_long=drop), or take a smaller base, or --set quantization.mode=4bit."
        )


def _dry_run_optimizer(optimizer: Any) -> None:
    unwrapped = getattr(optimizer, "optimizer", optimizer)
    if unwrapped.state:
        return  # of a run that goes on: its memory is taken already
    try:
        unwrapped.step()
    finally:
        unwrapped.state.clear()


def _smaller_plans(plan: TrainingPlan, by_tokens: bool, longest: int) -> Iterator[TrainingPlan]:
    """Plans of the same result in smaller pieces, the fastest first; activations are recomputed last."""
    if by_tokens:
        budget = int(plan.micro_batch_tokens or 0)
        while budget > longest and budget // 2 >= _MIN_MICRO_BATCH_TOKENS:  # else it holds one dialogue already
            budget //= 2
            plan = plan.model_copy(update={"micro_batch_tokens": budget})
            yield plan
    else:
        effective_batch_size = plan.effective_batch_size
        for size in (n for n in range(plan.micro_batch_size - 1, 0, -1) if effective_batch_size % n == 0):
            plan = plan.model_copy(
                update={"micro_batch_size": size, "gradient_accumulation_steps": effective_batch_size // size}
            )
            yield plan
    if plan.gradient_checkpointing is not True:
        yield plan.model_copy(update={"gradient_checkpointing": True})


def _changed_settings(before: TrainingPlan, after: TrainingPlan) -> dict[str, str]:
    """What differs, as a recipe has it."""
    names = ("micro_batch_tokens", "micro_batch_size", "gradient_checkpointing")
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in names}
    return {name: str(new).lower() for name, (old, new) in pairs.items() if old != new}


def _format_changes(before: TrainingPlan, after: TrainingPlan) -> str:
    parts = ", ".join(f"training.{name} becomes {value}" for name, value in _changed_settings(before, after).items())
    return f"Beginning again, with the same dialogues a step and the same result: {parts}."
