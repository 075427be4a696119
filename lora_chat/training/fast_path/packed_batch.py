"""A micro-batch as one row without padding, which contains the shared prefix of its dialogues only once.

The hidden states of a shared prefix are the same in every dialogue, so its gradient is the sum over the dialogues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from lora_chat.data.encoding.encode import IGNORE_INDEX

_MIN_SHARED_PREFIX_TOKENS = 4
"""Shortest shared prefix in tokens; the index tables for a shorter one cost more than they save."""


class EncodedIds(TypedDict):
    """Token ids and labels of one dialogue, both of the same length."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class PackedBatchCollator:
    """Collator of rows of `input_ids` and `labels`, both (length,), to tensors (1, tokens).

    The batch contains the borders of its sequences as `packed_cu_seqlens` (rows + 1 integers) and, for transformers'
    flash attention, as `cu_seq_lens_q`. `supervised` are the positions before a trained token. With a `shared_prefix`,
    each row except the first leaves out that number of tokens, but still attends to them.
    """

    share_prefix: bool

    def __call__(self, rows: Sequence[EncodedIds]) -> dict[str, Any]:
        """Return the packed batch."""
        rows = [self.trim(row) for row in rows]
        prefix = count_shared_prefix(rows) if self.share_prefix else 0
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        cu_seqlens = [0]
        for number, row in enumerate(rows):
            begin = prefix if number else 0
            ids += row["input_ids"][begin:]
            # The first token of a row is never predicted, because its predecessor belongs to another row.
            labels += [IGNORE_INDEX, *row["labels"][begin + 1 :]]
            positions += range(begin, len(row["input_ids"]))
            cu_seqlens.append(len(ids))
        supervised = [i for i, label in enumerate(labels[1:]) if label != IGNORE_INDEX]
        cu_seqlens_tensor = torch.tensor(cu_seqlens, dtype=torch.int32)
        longest = int(cu_seqlens_tensor.diff().max())
        batch = {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([positions]),
            "supervised": torch.tensor(supervised, dtype=torch.int64),
            "packed_cu_seqlens": tuple(cu_seqlens),
            "cu_seq_lens_q": cu_seqlens_tensor,
            "cu_seq_lens_k": cu_seqlens_tensor,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        return batch | {"shared_prefix": prefix} if prefix else batch

    @staticmethod
    def trim(row: EncodedIds) -> EncodedIds:
        """Remove the tokens after the last trained one, for example an unanswered turn, because they cause no loss."""
        end = len(row["labels"]) - _count_leading_unsupervised(row["labels"][::-1])
        return {"input_ids": row["input_ids"][:end], "labels": row["labels"][:end]} if end else row


def move_to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def count_shared_prefix(rows: Sequence[EncodedIds]) -> int:
    """Count the tokens with which all rows begin, if neither they nor the next token are trained."""
    first = rows[0]["input_ids"]
    if len(rows) < 2:
        return 0
    length = min(_count_leading_unsupervised(row["labels"]) for row in rows) - 1
    for row in rows[1:]:
        length = next((i for i in range(length) if row["input_ids"][i] != first[i]), length)
    return length if length >= _MIN_SHARED_PREFIX_TOKENS else 0


def _count_leading_unsupervised(labels: Sequence[int]) -> int:
    """Count the tokens before the first trained one."""
    return next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
