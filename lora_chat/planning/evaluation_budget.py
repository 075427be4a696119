"""The number of held-out replies that `evaluation.replies: auto` generates, bounded by planned time."""

from collections.abc import Callable

from lora_chat.config.plan import Plan
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.generation import MAX_BATCH_SIZE
from lora_chat.planning.phase_time import PhaseDurations

MAX_GENERATION_SHARE = 0.1
"""Largest share of the planned training time that optional replies may take."""
_COUNT_WITHOUT_SPEED = MAX_BATCH_SIZE
"""Optional replies if the speed of the device is unknown."""


def choose_reply_count(
    plan: Plan, data: DataLengths, predict: Callable[[DataLengths], PhaseDurations | None]
) -> tuple[Plan, DataLengths]:
    """Return the plan with the number of replies, and the lengths without the prompts that are left out.

    `predict` returns the seconds of each phase, or None if they are unknown.
    """
    if plan.evaluation.replies != "auto":
        return plan, data
    required = len(data.prompt_tokens) - data.optional_prompts
    minimum = predict(data.with_optional_prompts(0))
    count = min(data.optional_prompts, _COUNT_WITHOUT_SPEED)
    if minimum is not None:
        limit = minimum["generate"].likely + MAX_GENERATION_SHARE * minimum["train"].likely
        count = data.optional_prompts
        while count and _seconds_to_generate(predict(data.with_optional_prompts(count))) > limit:
            full_batches = (required + count - 1) // MAX_BATCH_SIZE
            count = max(0, full_batches * MAX_BATCH_SIZE - required)
    data = data.with_optional_prompts(count)
    evaluation = plan.evaluation.model_copy(update={"replies": plan.evaluation.samples + count})
    return plan.model_copy(update={"evaluation": evaluation}), data


def _seconds_to_generate(durations: PhaseDurations | None) -> float:
    """Return the likely seconds to generate all replies."""
    return durations["generate"].likely if durations else 0.0
