"""Micro-batches of one optimizer step by their tokens: the same dialogues a step, the same gradient, no padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_chat.training.fast_path.packed_batch import PackedBatchCollator, count_shared_prefix


@dataclass(frozen=True)
class StepCollator:
    """Collates all rows of an optimizer step to {"labels": ..., "micro_batches": [flat rows, ...]}."""

    micro_batch_collator: PackedBatchCollator
    max_tokens: int | None
    """Most tokens of a micro-batch; None leaves it to `max_rows`."""
    max_rows: int | None

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        rows = [self.micro_batch_collator.trim(row) for row in rows]
        shared = count_shared_prefix(rows) if self.micro_batch_collator.share_prefix else 0
        lengths = [len(row["input_ids"]) - shared for row in rows]
        budget = sum(lengths) if self.max_tokens is None else self.max_tokens - shared
        batches = pack_rows(lengths, max(1, budget), self.max_rows or len(rows))
        return {
            "labels": torch.tensor([label for row in rows for label in row["labels"]]),  # Trainer counts them
            "micro_batches": [self.micro_batch_collator([rows[i] for i in batch]) for batch in batches],
        }


def pack_rows(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Distribute rows over the fewest micro-batches that keep to the budget, all about equally large.

    A row longer than the budget is alone. In each, rows keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = max(1, -(-sum(lengths) // max_tokens), -(-len(lengths) // max_rows))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for i in order:
            smallest = min(range(count), key=lambda b: (len(batches[b]) >= max_rows, sizes[b], b))
            batches[smallest].append(i)
            sizes[smallest] += lengths[i]
        fits = all(size <= max_tokens or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
        if fits or count >= len(lengths):
            return [sorted(batch) for batch in batches if batch]
        count += 1
