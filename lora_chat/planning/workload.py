"""The workload of a run: its steps, its micro-batches and the largest of them, computed from row lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.lengths import DataLengths
from lora_chat.errors import RecipeError
from lora_chat.planning.layer_memory import MicroBatch

if TYPE_CHECKING:
    from lora_chat.data.row_lengths import LengthField, Numbers, RowLengths

_NUM_SAMPLED_BATCHES = 200
"""Number of random micro-batches whose padding is averaged; the mean is within a percent of the exact one."""


@dataclass(frozen=True)
class Workload:
    """Totals and means of the whole training."""

    rows: int
    steps: int
    step_tokens: float
    """Mean tokens of an optimizer step, without padding."""
    step_positions: float
    """Mean positions of an optimizer step, with padding; all of them are computed."""
    micro_batches: float
    """Mean number of micro-batches in a step."""
    supervised_tokens: int
    """Supervised tokens of the whole training; a token counts once per epoch."""
    supervised_share: float
    mean_length: float
    """Mean length of a token's row, in tokens. The cost of attention grows with it."""
    largest: MicroBatch
    mask_needed: bool
    """Whether rows of different lengths share a micro-batch, so that attention needs a mask."""


def count_steps(rows: int, plan: TrainingPlan) -> int:
    """Return the optimizer steps of training on a number of rows."""
    # The trainer rounds the steps of an epoch up, and the steps of a fractional number of epochs up again.
    steps_per_epoch = max(1, -(-rows // plan.effective_batch_size))
    return plan.max_steps or -int(-plan.epochs * steps_per_epoch // 1)


def check_warmup(rows: int, plan: TrainingPlan) -> None:
    """Raise RecipeError if the warm-up leaves no step for the peak of the learning rate."""
    steps = count_steps(rows, plan)
    if plan.warmup_steps and plan.warmup_steps >= steps:
        raise RecipeError(
            f"training.warmup_steps: {plan.warmup_steps} leaves none of the run's {steps} steps for the peak of the "
            "learning rate. Fix: set a smaller number, or train for more epochs."
        )


def compute_workload(data: DataLengths, plan: TrainingPlan, processes: int = 1) -> Workload:
    """Compute the workload of training on these rows by this plan.

    Of several processes, it is the workload of all together, with the largest micro-batch that one of them can have.
    """
    train = data.train
    rows, batch_size = len(train.tokens), plan.effective_batch_size
    field: LengthField = "through_last_label" if plan.fast_path else "tokens"
    lengths, sums = getattr(train, field), train.sum_up(field)
    supervised = train.sum_up("supervised")
    steps_per_epoch = max(1, -(-rows // batch_size))
    steps = count_steps(rows, plan)
    rows_seen = steps / steps_per_epoch * rows
    step_rows = rows_seen / steps
    step_tokens = step_rows * sums.mean
    if plan.fast_path:
        # A packed batch contains the shared prefix once, so every row but the first saves its tokens.
        step_tokens -= count_shared_prefix(data, plan) * max(
            0.0, step_rows - _micro_batches_per_step(plan, step_tokens, step_rows)
        )
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
        supervised_tokens=round(rows_seen * supervised.mean),
        supervised_share=supervised.total / sums.total,
        # Mean over tokens, not over rows: a row of n tokens counts n times.
        mean_length=sums.squares / sums.total,
        largest=largest_micro_batch(data, plan, processes),
        mask_needed=not plan.fast_path and plan.micro_batch_size > 1 and sums.shortest < sums.longest,
    )


def count_shared_prefix(data: DataLengths, plan: TrainingPlan) -> int:
    """Return the tokens that a packed batch contains once; none if each dialogue has its own embedding noise."""
    return data.shared_prefix if plan.fast_path and not plan.neftune_alpha else 0


def _micro_batches_per_step(plan: TrainingPlan, tokens: float, rows: float) -> float:
    """Return the number of micro-batches for this many tokens and rows."""
    if plan.micro_batch_tokens is None:
        return max(1.0, rows / plan.micro_batch_size)
    return max(1.0, -float(-tokens // plan.micro_batch_tokens))


def _mean_padded_tokens(lengths: "Numbers", size: int) -> float:
    """Return the mean positions of a padded micro-batch of `size` random rows."""
    import numpy as np

    generator = np.random.default_rng(0)
    longest = [int(generator.choice(lengths, size, replace=False).max()) for _ in range(_NUM_SAMPLED_BATCHES)]
    return size * sum(longest) / len(longest)


def largest_micro_batch(data: DataLengths, plan: TrainingPlan, processes: int = 1) -> MicroBatch:
    """Return an upper bound of every micro-batch; training tries this one before its first step."""
    train = data.train
    field: LengthField = "through_last_label" if plan.fast_path else "tokens"
    shared_prefix = count_shared_prefix(data, plan)
    longest_rows = _find_largest_rows(train, plan, shared_prefix, field, field, processes)
    # The most supervised tokens may be in other rows than the longest ones.
    most_supervised_rows = _find_largest_rows(train, plan, shared_prefix, field, "supervised", processes)
    lengths = getattr(train, field)[longest_rows].tolist()
    packed_tokens = sum(lengths) - shared_prefix * (len(lengths) - 1)
    tokens = packed_tokens if plan.fast_path else max(lengths) * len(lengths)
    most_supervised = max(int(train.supervised[rows].sum()) for rows in (longest_rows, most_supervised_rows))
    return MicroBatch(tokens, max(lengths), most_supervised)


def _find_largest_rows(
    train: "RowLengths",
    plan: TrainingPlan,
    shared_prefix: int,
    field: "LengthField",
    sort_field: "LengthField",
    processes: int,
) -> "Numbers":
    """Return the numbers of the rows of the largest micro-batch, which are among the largest of a whole step."""
    candidates = train.find_largest(sort_field, plan.effective_batch_size)
    lengths, sort_keys = (getattr(train, name)[candidates].tolist() for name in (field, sort_field))
    longest = getattr(train, field)[train.find_largest(field, plan.effective_batch_size)].tolist()
    rows = select_largest_rows(lengths, plan, shared_prefix, sort_keys, processes=processes, longest=longest)
    return candidates[rows]


def select_largest_rows(
    lengths: Sequence[int],
    plan: TrainingPlan,
    shared_prefix: int,
    sort_keys: Sequence[int] | None = None,
    *,
    processes: int = 1,
    longest: Sequence[int] | None = None,
) -> list[int]:
    """Return the indices of the rows that together form the largest micro-batch.

    Rows are taken in descending order of `sort_keys`, or of their length without it. A row that exceeds the remaining
    token budget is skipped. Each of several processes has only its share of a step; `longest` are the lengths of the
    longest rows, if `lengths` lacks some of them.
    """
    size = sort_keys or lengths
    order = sorted(range(len(lengths)), key=lambda i: -size[i])
    if not plan.fast_path:
        return order[: count_micro_batch_rows(plan, processes)]
    max_rows = _most_rows(plan, processes) if plan.micro_batch_tokens else count_micro_batch_rows(plan, processes)
    remaining_tokens = (plan.micro_batch_tokens or sum(lengths)) - shared_prefix
    if processes > 1:
        remaining_tokens = min(remaining_tokens, _largest_share(longest or lengths, plan, shared_prefix, processes))
    selected: list[int] = []
    for i in order[: plan.effective_batch_size]:
        length = lengths[i] - shared_prefix
        # The first row is always taken: a dialogue longer than the budget forms a micro-batch of one.
        if not selected or (length <= remaining_tokens and len(selected) < max_rows):
            selected.append(i)
            remaining_tokens -= length
    return selected


def _largest_share(lengths: Sequence[int], plan: TrainingPlan, shared_prefix: int, processes: int) -> int:
    """Return the most tokens, without the shared prefix, that `share_by_size` gives to one process in any step."""
    largest = sorted(lengths, reverse=True)[: plan.effective_batch_size]
    # The share that gets its last row was the smallest one, so it had at most the mean of the others.
    return -(-(sum(largest) - largest[0]) // processes) + largest[0] - shared_prefix


def count_micro_batch_rows(plan: TrainingPlan, processes: int = 1) -> int:
    """Return the largest number of rows of a micro-batch that is limited by rows."""
    return min(plan.micro_batch_size, _most_rows(plan, processes))


def _most_rows(plan: TrainingPlan, processes: int) -> int:
    """Return the largest number of rows of one process in a step."""
    # Every process gets a row before one gets a second, as long as there are enough of them.
    return max(1, plan.effective_batch_size - processes + 1)
