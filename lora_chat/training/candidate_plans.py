"""Training plans with the same result and smaller micro-batches, for data that does not fit in memory."""

from collections.abc import Iterator, Mapping

from lora_chat.config.plan import TrainingPlan

_MIN_MICRO_BATCH_TOKENS = 256
"""Smallest micro-batch in tokens. Smaller ones are slow and save little memory."""


def candidate_plans(plan: TrainingPlan, *, packed: bool, longest: int) -> Iterator[TrainingPlan]:
    """Yield the plan and then plans that need less memory, the fastest first.

    `packed` says that micro-batches are limited by tokens, and `longest` is the longest row in tokens. The cache of
    dequantized weights goes first because it saves the least time, and recomputing activations comes last because it
    is the slowest.
    """
    yield plan
    if plan.cached_layers:
        plan = plan.model_copy(update={"cached_layers": 0})
        yield plan
    if packed and plan.micro_batch_tokens is not None:
        budget = plan.micro_batch_tokens
        # A budget below the longest row changes nothing, because that row is already alone in its micro-batch.
        while budget > longest and budget // 2 >= _MIN_MICRO_BATCH_TOKENS:
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


def changed_settings(before: TrainingPlan, after: TrainingPlan) -> dict[str, str]:
    """Return the settings that differ between two candidate plans, with the new values as a recipe writes them.

    The cache of dequantized weights is not among them, because no recipe sets it.
    """
    names = ("micro_batch_tokens", "micro_batch_size", "gradient_checkpointing")
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in names}
    return {name: str(new).lower() for name, (old, new) in pairs.items() if old != new}


def update_identity(plan: TrainingPlan, identity: Mapping[str, object]) -> dict[str, object]:
    """Return a run's identity with the training settings of the plan."""
    fields = {f"training.{name}": value for name, value in plan.model_dump(mode="json").items()}
    return {**identity, **{name: value for name, value in fields.items() if name in identity}}


def format_smaller_plan(before: TrainingPlan, after: TrainingPlan, longest: int) -> str:
    """Format the message that training restarts with a smaller plan."""
    changes = ", ".join(f"training.{name} becomes {value}" for name, value in changed_settings(before, after).items())
    if not changes:
        changes = "dequantized weights are not cached"
    return (
        f"Out of memory: {_describe_micro_batch(longest)} does not fit. "
        f"Trying again with the same dialogues per step and the same result: {changes}."
    )


def format_suggested_plan(before: TrainingPlan, after: TrainingPlan, longest: int) -> str:
    """Format the error for a plan that does not fit, with the settings that do."""
    flags = " ".join(f"--set training.{name}={value}" for name, value in changed_settings(before, after).items())
    return (
        f"Out of memory: {_describe_micro_batch(longest)} does not fit (tried before training).\n"
        f"Fix: {flags}. These settings fit, with the same dialogues per step and the same result."
    )


def format_nothing_fits(longest: int) -> str:
    """Format the error for a longest dialogue that fits with no candidate plan."""
    return (
        f"Out of memory: the longest dialogue, {longest:,} tokens, does not fit, even alone and with gradient "
        "checkpointing (tried before training).\n"
        "Fix: leave out long dialogues (--set data.max_length=N --set data.over_long=drop), take a smaller base, "
        "or use --set quantization.mode=4bit."
    )


def _describe_micro_batch(longest: int) -> str:
    return f"the largest micro-batch (longest dialogue {longest:,} tokens)"
