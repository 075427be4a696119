"""Micro-batches of one optimizer step by their tokens: the same dialogues a step, the same gradient, no padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_chat.training.fast_path.packed_batch import FlatRows, shared_prefix


@dataclass(frozen=True)
class StepCollator:
    """Collates all rows of an optimizer step to {"labels": ..., "micro_batches": [flat rows, ...]}."""

    flat: FlatRows
    budget: int | None
    """Most tokens of a micro-batch; None leaves it to `most_rows`."""
    most_rows: int | None

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        rows = [self.flat.trim(row) for row in rows]
        shared = shared_prefix(rows) if self.flat.share else 0
        lengths = [len(row["input_ids"]) - shared for row in rows]
        budget = sum(lengths) if self.budget is None else self.budget - shared
        batches = pack(lengths, max(1, budget), self.most_rows or len(rows))
        return {
            "labels": torch.tensor([label for row in rows for label in row["labels"]]),  # Trainer counts them
            "micro_batches": [self.flat([rows[i] for i in batch]) for batch in batches],
        }


def pack(lengths: Sequence[int], budget: int, most_rows: int) -> list[list[int]]:
    """Distribute rows over the fewest micro-batches that keep to the budget, all about equally large.

    A row longer than the budget is alone. In each, rows keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = max(1, -(-sum(lengths) // budget), -(-len(lengths) // most_rows))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for i in order:
            smallest = min(range(count), key=lambda b: (len(batches[b]) >= most_rows, sizes[b], b))
            batches[smallest].append(i)
            sizes[smallest] += lengths[i]
        fits = all(size <= budget or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
        if fits or count >= len(lengths):
            return [sorted(batch) for batch in batches if batch]
        count += 1
