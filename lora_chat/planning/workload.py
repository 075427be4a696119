"""What a run goes through: its steps, its micro-batches, and the largest of each, from lengths alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.lengths import DataLengths
from lora_chat.planning.layer_memory import MicroBatch

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]

_NUM_SAMPLED_BATCHES = 200
"""Steps whose padding is looked at; their mean is that of all within a percent."""


@dataclass(frozen=True)
class Workload:
    """Figures of the whole training."""

    rows: int
    steps: int
    step_tokens: float
    """Mean tokens of an optimizer step, without padding."""
    step_positions: float
    """The same with padding: what is computed."""
    micro_batches: float
    """Mean number of micro-batches in a step."""
    supervised_tokens: int
    """In the whole training, each as often as it is seen."""
    supervised_share: float
    mean_length: float
    """Of the row that a token stands in: what attention's cost grows with."""
    largest: MicroBatch
    mask_needed: bool
    """Whether rows of different lengths stand side by side."""


def compute_workload(data: DataLengths, plan: TrainingPlan) -> Workload:
    """The training of these rows by this plan."""
    train = data.train
    rows, batch_size = len(train.tokens), plan.effective_batch_size
    lengths = train.trained if plan.fast_path else train.tokens
    steps_per_epoch = max(1, -(-rows // batch_size))
    steps = plan.max_steps or -int(-plan.epochs * steps_per_epoch // 1)
    rows_seen = steps / steps_per_epoch * rows
    step_rows = rows_seen / steps
    step_tokens = step_rows * float(lengths.mean())
    if plan.fast_path:
        step_tokens -= data.shared_prefix * max(0.0, step_rows - _micro_batches_per_step(plan, step_tokens, step_rows))
        count = _micro_batches_per_step(plan, step_tokens, step_rows)
        positions = step_tokens
    else:
        count = step_rows / plan.micro_batch_size
        positions = count * _mean_padded_tokens(lengths, min(rows, plan.micro_batch_size))
    return Workload(
        rows=rows,
        steps=steps,
        step_tokens=step_tokens,
        step_positions=positions,
        micro_batches=max(1.0, count),
        supervised_tokens=round(rows_seen * float(train.supervised.mean())),
        supervised_share=float(train.supervised.sum() / lengths.sum()),
        mean_length=float((lengths.astype(float) ** 2).sum() / lengths.sum()),
        largest=largest_micro_batch(data, plan),
        mask_needed=not plan.fast_path and plan.micro_batch_size > 1 and int(lengths.min()) < int(lengths.max()),
    )


def _micro_batches_per_step(plan: TrainingPlan, tokens: float, rows: float) -> float:
    if plan.micro_batch_tokens is None:
        return max(1.0, rows / plan.micro_batch_size)
    return max(1.0, -float(-tokens // plan.micro_batch_tokens))


def _mean_padded_tokens(lengths: "Numbers", size: int) -> float:
    """Mean positions of a micro-batch of so many random rows."""
    import numpy as np

    generator = np.random.default_rng(0)
    longest = [int(generator.choice(lengths, size, replace=False).max()) for _ in range(_NUM_SAMPLED_BATCHES)]
    return size * sum(longest) / len(longest)


def largest_micro_batch(data: DataLengths, plan: TrainingPlan) -> MicroBatch:
    """At least the largest that can come: what training tries before its first step."""
    train = data.train
    lengths = (train.trained if plan.fast_path else train.tokens).tolist()
    supervised = train.supervised.tolist()
    shared_prefix = data.shared_prefix if plan.fast_path else 0
    longest_rows = select_largest_rows(lengths, plan, shared_prefix)
    longest = max(lengths[i] for i in longest_rows)
    packed_tokens = sum(lengths[i] for i in longest_rows) - shared_prefix * (len(longest_rows) - 1)
    tokens = packed_tokens if plan.fast_path else longest * len(longest_rows)
    most_supervised_rows = select_largest_rows(lengths, plan, shared_prefix, supervised)
    return MicroBatch(
        tokens, longest, max(sum(supervised[i] for i in rows) for rows in (longest_rows, most_supervised_rows))
    )


def select_largest_rows(
    lengths: Sequence[int], plan: TrainingPlan, shared_prefix: int, sort_keys: Sequence[int] | None = None
) -> list[int]:
    """Which rows together are the largest micro-batch: the longest, or the first `sort_keys` a number, then what
    has room.
    """
    size = sort_keys or lengths
    order = sorted(range(len(lengths)), key=lambda i: -size[i])
    if not plan.fast_path:
        return order[: plan.micro_batch_size]
    max_rows = plan.effective_batch_size if plan.micro_batch_tokens else plan.micro_batch_size
    remaining_tokens = (plan.micro_batch_tokens or sum(lengths)) - shared_prefix
    selected: list[int] = []
    for i in order[: plan.effective_batch_size]:
        length = lengths[i] - shared_prefix
        if not selected or (length <= remaining_tokens and len(selected) < max_rows):
            selected.append(i)
            remaining_tokens -= length
    return selected
