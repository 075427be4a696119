"""Collators of all dialogues of an optimizer step to the micro-batches that this process computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.encoding.encode import IGNORE_INDEX
from lora_chat.processes.group import current_group
from lora_chat.processes.shares import share_by_size
from lora_chat.training.fast_path.packed_batch import EncodedIds, PackedBatchCollator, count_shared_prefix
from lora_chat.training.fast_path.packing import pack_rows

StepBatch = dict[str, Any]
"""The batch of an optimizer step:

- "row_ids", "row_labels", "row_lengths": token ids and labels of all rows, one row after the other, and the length of
  each; arrays, which stay in main memory
- "supervised_tokens": number of supervised tokens of all rows, by which the loss is divided in every process
- "own_tokens": those in the micro-batches
- "micro_batches": the batches of this process's share of the rows; empty if the step has fewer rows than processes
"""


@dataclass(frozen=True)
class StepCollator:
    """Collator of rows of `input_ids` and `labels`, both (length,), to the batch of a step.

    Every process gets all rows of a step, so that all count the same tokens and divide the rows in the same way.
    """

    micro_batch_collator: Callable[[Sequence[EncodedIds]], dict[str, Any]]
    max_rows: int | None
    """Largest micro-batch in rows; None limits only the tokens."""
    process: int = 0
    """Number of this process, from 0."""
    processes: int = 1

    def __call__(self, rows: Sequence[EncodedIds]) -> StepBatch:
        """Return the batch of a step."""
        rows = [self.trim(row) for row in rows]
        lengths = [len(row["input_ids"]) for row in rows]
        share = share_by_size(lengths, self.processes)[self.process]
        micro_batches = self._make_micro_batches([rows[i] for i in share]) if share else []
        return {
            "row_ids": np.array([token for row in rows for token in row["input_ids"]]),
            "row_labels": np.array([label for row in rows for label in row["labels"]]),
            "row_lengths": np.array(lengths),
            # The first label of a row causes no loss, because no token precedes it.
            "supervised_tokens": sum(label != IGNORE_INDEX for row in rows for label in row["labels"][1:]),
            "own_tokens": sum(count_supervised_tokens(batch) for batch in micro_batches),
            "micro_batches": micro_batches,
        }

    def trim(self, row: EncodedIds) -> EncodedIds:
        """Return the part of a row that is trained."""
        return row

    def _make_micro_batches(self, rows: Sequence[EncodedIds]) -> list[dict[str, Any]]:
        """Return the micro-batches of one or more rows."""
        size = self.max_rows or len(rows)
        return [self.micro_batch_collator(rows[begin : begin + size]) for begin in range(0, len(rows), size)]


@dataclass(frozen=True)
class PackedStepCollator(StepCollator):
    """Collator whose micro-batches are packed: they have no padding, and about the same number of tokens."""

    micro_batch_collator: PackedBatchCollator
    max_tokens: int | None = None
    """Largest micro-batch in tokens; None limits only the rows."""

    def trim(self, row: EncodedIds) -> EncodedIds:
        """Return a row up to its last supervised token."""
        return self.micro_batch_collator.trim(row)

    def _make_micro_batches(self, rows: Sequence[EncodedIds]) -> list[dict[str, Any]]:
        shared = count_shared_prefix(rows) if self.micro_batch_collator.share_prefix else 0
        # A micro-batch contains the shared prefix once, so neither the lengths nor the budget include it.
        lengths = [len(row["input_ids"]) - shared for row in rows]
        budget = sum(lengths) if self.max_tokens is None else self.max_tokens - shared
        batches = pack_rows(lengths, max(1, budget), self.max_rows or len(rows))
        return [self.micro_batch_collator([rows[i] for i in batch]) for batch in batches]


def make_packed_collator(collator: PackedBatchCollator, plan: TrainingPlan) -> PackedStepCollator:
    """Return the collator for the micro-batch size of a plan, which limits either tokens or rows."""
    max_rows = None if plan.micro_batch_tokens else plan.micro_batch_size
    rank = current_group().rank
    return PackedStepCollator(collator, max_rows, rank.index, rank.size, plan.micro_batch_tokens)


def make_padded_collator(
    collator: Callable[[Sequence[EncodedIds]], dict[str, Any]], plan: TrainingPlan
) -> StepCollator:
    """Return the collator of padded micro-batches; `collator` is TRL's for one of them."""
    rank = current_group().rank
    return StepCollator(collator, plan.micro_batch_size, rank.index, rank.size)


def count_supervised_tokens(batch: dict[str, Any]) -> int:
    """Count the supervised tokens of a padded or packed micro-batch."""
    if "supervised" in batch:
        return int(batch["supervised"].numel())
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def split_rows(batch: StepBatch) -> list[list[int]]:
    """Return the token ids of each row of a step."""
    return [row.tolist() for row in np.split(batch["row_ids"], batch["row_lengths"].cumsum()[:-1])]
