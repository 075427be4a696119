"""A micro-batch as one row without padding; a beginning that all its dialogues share stands there once.

The hidden states of a shared beginning are the same in every dialogue, so its gradient is the sum of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_chat.data.encoding.encode import IGNORE_INDEX

_SHORTEST_SHARED = 4
"""Below this a shared beginning is not worth its bookkeeping."""


@dataclass(frozen=True)
class FlatRows:
    """Collates rows of `input_ids` and `labels`, both (length,), to tensors (1, tokens).

    Borders come as `segment_edges` (rows + 1 integers) and, for transformers' own flash attention, `cu_seq_lens_q`;
    `supervised` are the positions before a trained token. With `shared_prefix`, every row but the first leaves that
    many tokens out, which it is to attend to nevertheless.
    """

    share: bool

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        rows = [self.trim(row) for row in rows]
        prefix = shared_prefix(rows) if self.share else 0
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        edges = [0]
        for number, row in enumerate(rows):
            begin = prefix if number else 0
            ids += row["input_ids"][begin:]
            # A row's first token is no one's next token.
            labels += [IGNORE_INDEX, *row["labels"][begin + 1 :]]
            positions += range(begin, len(row["input_ids"]))
            edges.append(len(ids))
        supervised = [i for i, label in enumerate(labels[1:]) if label != IGNORE_INDEX]
        borders = torch.tensor(edges, dtype=torch.int32)
        longest = int(borders.diff().max())
        batch = {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([positions]),
            "supervised": torch.tensor(supervised, dtype=torch.int64),
            "segment_edges": tuple(edges),
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        return batch | {"shared_prefix": prefix} if prefix else batch

    @staticmethod
    def trim(row: dict[str, list[int]]) -> dict[str, list[int]]:
        """Without what follows the last trained token (a line feed, an unanswered turn): it has no part in the loss."""
        end = len(row["labels"]) - _untrained(row["labels"][::-1])
        return {"input_ids": row["input_ids"][:end], "labels": row["labels"][:end]} if end else row


def put_on(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def unflatten(batch: dict[str, Any]) -> list[list[int]]:
    """The ids of every row of a collated batch, flat or padded, in some order."""
    if "micro_batches" in batch:
        return [ids for micro_batch in batch["micro_batches"] for ids in unflatten(micro_batch)]
    if "segment_edges" not in batch:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        pairs = zip(batch["input_ids"], mask, strict=True)
        return [row[kept.bool()].tolist() for row, kept in pairs]
    ids, edges = batch["input_ids"][0].tolist(), batch["segment_edges"]
    head = ids[: batch.get("shared_prefix", 0)]
    return [(head if i else []) + ids[edges[i] : edges[i + 1]] for i in range(len(edges) - 1)]


def shared_prefix(rows: Sequence[dict[str, list[int]]]) -> int:
    """How many tokens all rows begin with, none of them trained, nor the one after them."""
    first = rows[0]["input_ids"]
    if len(rows) < 2:
        return 0
    length = min(_untrained(row["labels"]) for row in rows) - 1
    for row in rows[1:]:
        length = next((i for i in range(length) if row["input_ids"][i] != first[i]), length)
    return length if length >= _SHORTEST_SHARED else 0


def _untrained(labels: Sequence[int]) -> int:
    """Number of tokens before the first trained one."""
    return next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
