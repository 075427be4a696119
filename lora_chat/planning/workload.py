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

_SAMPLED_STEPS = 200
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


def make_workload(data: DataLengths, plan: TrainingPlan) -> Workload:
    """The training of these rows by this plan."""
    train = data.train
    rows, whole = len(train.tokens), plan.effective_batch_size
    lengths = train.trained if plan.fast_path else train.tokens
    epoch = max(1, -(-rows // whole))
    steps = plan.max_steps or -int(-plan.epochs * epoch // 1)
    seen = steps / epoch * rows
    step_rows = seen / steps
    step_tokens = step_rows * float(lengths.mean())
    if plan.fast_path:
        step_tokens -= data.shared_prefix * max(0.0, step_rows - _count(plan, step_tokens, step_rows))
        count = _count(plan, step_tokens, step_rows)
        positions = step_tokens
    else:
        count = step_rows / plan.micro_batch_size
        positions = count * _padded(lengths, min(rows, plan.micro_batch_size))
    return Workload(
        rows=rows,
        steps=steps,
        step_tokens=step_tokens,
        step_positions=positions,
        micro_batches=max(1.0, count),
        supervised_tokens=round(seen * float(train.supervised.mean())),
        supervised_share=float(train.supervised.sum() / lengths.sum()),
        mean_length=float((lengths.astype(float) ** 2).sum() / lengths.sum()),
        largest=largest_micro_batch(data, plan),
        mask_needed=not plan.fast_path and plan.micro_batch_size > 1 and int(lengths.min()) < int(lengths.max()),
    )


def _count(plan: TrainingPlan, tokens: float, rows: float) -> float:
    if plan.micro_batch_tokens is None:
        return max(1.0, rows / plan.micro_batch_size)
    return max(1.0, -float(-tokens // plan.micro_batch_tokens))


def _padded(lengths: "Numbers", size: int) -> float:
    """Mean positions of a micro-batch of so many random rows."""
    import numpy as np

    dice = np.random.default_rng(0)
    longest = [int(dice.choice(lengths, size, replace=False).max()) for _ in range(_SAMPLED_STEPS)]
    return size * sum(longest) / len(longest)


def largest_micro_batch(data: DataLengths, plan: TrainingPlan) -> MicroBatch:
    """At least the largest that can come: what training tries before its first step."""
    train = data.train
    lengths = (train.trained if plan.fast_path else train.tokens).tolist()
    supervised = train.supervised.tolist()
    shared = data.shared_prefix if plan.fast_path else 0
    picked = pick_largest(lengths, plan, shared)
    longest = max(lengths[i] for i in picked)
    together = sum(lengths[i] for i in picked) - shared * (len(picked) - 1)
    tokens = together if plan.fast_path else longest * len(picked)
    heaviest = pick_largest(lengths, plan, shared, supervised)
    return MicroBatch(tokens, longest, max(sum(supervised[i] for i in rows) for rows in (picked, heaviest)))


def pick_largest(lengths: Sequence[int], plan: TrainingPlan, shared: int, by: Sequence[int] | None = None) -> list[int]:
    """Which rows together are the largest micro-batch: the longest, or the first `by` a number, then what has room."""
    size = by or lengths
    order = sorted(range(len(lengths)), key=lambda i: -size[i])
    if not plan.fast_path:
        return order[: plan.micro_batch_size]
    most = plan.effective_batch_size if plan.micro_batch_tokens else plan.micro_batch_size
    room = (plan.micro_batch_tokens or sum(lengths)) - shared
    picked: list[int] = []
    for i in order[: plan.effective_batch_size]:
        length = lengths[i] - shared
        if not picked or (length <= room and len(picked) < most):
            picked.append(i)
            room -= length
    return picked
