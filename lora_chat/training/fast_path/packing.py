"""Distribution of an optimizer step's dialogues over micro-batches by tokens, with the same gradient and no padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_chat.config.plan import TrainingPlan
from lora_chat.training.fast_path.packed_batch import EncodedIds, PackedBatchCollator, count_shared_prefix


@dataclass(frozen=True)
class StepCollator:
    """Collator of all rows of an optimizer step to {"labels": ..., "micro_batches": [packed batch, ...]}."""

    micro_batch_collator: PackedBatchCollator
    max_tokens: int | None
    """Largest micro-batch in tokens; None limits only the rows."""
    max_rows: int | None
    """Largest micro-batch in rows; None limits only the tokens."""

    @classmethod
    def from_plan(cls, collator: PackedBatchCollator, plan: TrainingPlan) -> "StepCollator":
        """Return the collator for the micro-batch size of a plan, which limits either tokens or rows."""
        max_rows = None if plan.micro_batch_tokens else plan.micro_batch_size
        return cls(collator, plan.micro_batch_tokens, max_rows)

    def __call__(self, rows: Sequence[EncodedIds]) -> dict[str, Any]:
        """Return the packed micro-batches of one optimizer step."""
        rows = [self.micro_batch_collator.trim(row) for row in rows]
        shared = count_shared_prefix(rows) if self.micro_batch_collator.share_prefix else 0
        # A micro-batch contains the shared prefix once, so neither the lengths nor the budget include it.
        lengths = [len(row["input_ids"]) - shared for row in rows]
        budget = sum(lengths) if self.max_tokens is None else self.max_tokens - shared
        batches = pack_rows(lengths, max(1, budget), self.max_rows or len(rows))
        return {
            "labels": torch.tensor([label for row in rows for label in row["labels"]]),  # Trainer counts them
            "micro_batches": [self.micro_batch_collator([rows[i] for i in batch]) for batch in batches],
        }


def pack_rows(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Distribute rows over the fewest micro-batches within both limits, of similar size.

    A row longer than the budget gets a micro-batch for itself. The rows of a micro-batch keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = max(1, -(-sum(lengths) // max_tokens), -(-len(lengths) // max_rows))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for i in order:
            # The longest row that is left goes to the smallest micro-batch with room for a row.
            smallest = min(range(count), key=lambda b: (len(batches[b]) >= max_rows, sizes[b], b))
            batches[smallest].append(i)
            sizes[smallest] += lengths[i]
        fits = all(size <= max_tokens or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
        if fits or count >= len(lengths):
            return [sorted(batch) for batch in batches if batch]
        count += 1
