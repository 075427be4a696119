"""The largest share of the work that one of several processes has: of steps, of rows, and of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.lengths import DataLengths, RowLengths
from lora_chat.planning.workload import Workload, count_shared_prefix
from lora_chat.processes.shares import share_by_size

if TYPE_CHECKING:
    from lora_chat.data.lengths import Numbers

_NUM_SAMPLED_STEPS, _NUM_SAMPLED_ROWS = 64, 8192
"""Largest numbers of steps, and of their rows, whose division is tried; at least one step is."""
_MAX_DIVIDED_ROWS = 10_000
"""Largest number of rows that are divided one by one; the shares of more rows are nearly equal."""

Shares = tuple[tuple[int, ...], ...]
"""Lengths of the dialogues of each process in one step."""


@dataclass(frozen=True)
class StepShares:
    """The dialogues of sampled steps, whole and divided among the processes; lengths are without the shared prefix."""

    count: int
    whole: tuple[Shares, ...]
    divided: tuple[Shares, ...]
    shared_prefix: int

    def apply_to(self, workload: Workload, plan: TrainingPlan) -> Workload:
        """Return the workload of the process that has the most to do in each step."""
        if self.count == 1:
            return workload
        whole_positions, whole_batches = self._measure(self.whole, plan)
        positions, batches = self._measure(self.divided, plan)
        ratio = positions / whole_positions
        return replace(
            workload,
            step_tokens=workload.step_tokens * ratio,
            step_positions=workload.step_positions * ratio,
            micro_batches=max(1.0, workload.micro_batches * batches / whole_batches),
        )

    def _measure(self, steps: Sequence[Shares], plan: TrainingPlan) -> tuple[float, float]:
        """Return the mean positions and micro-batches of the largest share of a step."""
        largest = [
            (max(positions for positions, _ in measured), max(batches for _, batches in measured))
            for shares in steps
            if (measured := [_measure_share(share, plan, self.shared_prefix) for share in shares])
        ]
        return sum(positions for positions, _ in largest) / len(largest), sum(n for _, n in largest) / len(largest)


def divide_steps(data: DataLengths, plan: TrainingPlan, count: int) -> StepShares:
    """Divide the dialogues of some steps of an epoch among processes, as training does."""
    prefix = count_shared_prefix(data, plan)
    lengths = data.train.through_last_label if plan.fast_path else data.train.tokens
    steps = _sample_steps(lengths, plan.effective_batch_size, prefix)
    divided = [
        tuple(tuple(step[i] for i in share) for share in share_by_size([n + prefix for n in step], count))
        for step in steps
    ]
    return StepShares(count, tuple((tuple(step),) for step in steps), tuple(divided), prefix)


def _sample_steps(lengths: "Numbers", batch_size: int, prefix: int) -> list[list[int]]:
    """Return the lengths of the rows of some steps, without the prefix, in a random order that is always the same."""
    import numpy as np

    count = max(1, min(_NUM_SAMPLED_STEPS, _NUM_SAMPLED_ROWS // batch_size))
    # Only as many rows as needed, because there may be millions.
    size = min(len(lengths), count * batch_size)
    sampled = lengths[np.random.default_rng(0).choice(len(lengths), size, replace=False)] - prefix
    return [sampled[begin : begin + batch_size].tolist() for begin in range(0, size, batch_size)]


def _measure_share(lengths: Sequence[int], plan: TrainingPlan, prefix: int) -> tuple[int, int]:
    """Return the positions and micro-batches of one share of a step; none of an empty one."""
    if not lengths:
        return 0, 0
    size = plan.micro_batch_size
    if not plan.fast_path:
        batches = [lengths[begin : begin + size] for begin in range(0, len(lengths), size)]
        return sum(len(batch) * max(batch) for batch in batches), len(batches)
    tokens = sum(lengths)
    if plan.micro_batch_tokens is None:
        count = -(-len(lengths) // size)
    else:
        count = min(len(lengths), -(-tokens // max(1, plan.micro_batch_tokens - prefix)))
    count = max(1, count)
    return tokens + count * prefix, count


def largest_data_share(data: DataLengths, count: int) -> DataLengths:
    """Return the rows and prompts of the process that has the most of them; the training rows stay.

    The recital stays too, because the first process does it without the others.
    """
    if count == 1:
        return data
    # The longest prompt is among those of the first process, and so is each further `count`-th one.
    prompts = tuple(sorted(data.prompt_tokens, reverse=True)[::count])
    return replace(
        data,
        validation=_largest_rows_share(data.validation, count),
        test=None if data.test is None else _largest_rows_share(data.test, count),
        prompt_tokens=prompts,
        optional_prompts=0,
    )


def _largest_rows_share(rows: RowLengths, count: int) -> RowLengths:
    """Return the rows of the process that has the most tokens."""
    import numpy as np

    tokens = rows.tokens.tolist()
    if len(tokens) <= _MAX_DIVIDED_ROWS:
        shares = share_by_size(tokens, count)
        picked = max(shares, key=lambda share: sum(tokens[i] for i in share))
    else:
        picked = np.argsort(-rows.tokens, kind="stable")[::count].tolist()
    return rows.select(np.asarray(picked, dtype=int))
