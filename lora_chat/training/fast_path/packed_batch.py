"""A micro-batch as one row without padding; a beginning that all its dialogues share stands there once.

The hidden states of a shared beginning are the same in every dialogue, so its gradient is the sum of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_chat.data.encoding.encode import IGNORE_INDEX

_MIN_SHARED_PREFIX_TOKENS = 4
"""Below this a shared beginning is not worth its bookkeeping."""


@dataclass(frozen=True)
class PackedBatchCollator:
    """Collates rows of `input_ids` and `labels`, both (length,), to tensors (1, tokens).

    Borders come as `segment_edges` (rows + 1 integers) and, for transformers' own flash attention, `cu_seq_lens_q`;
    `supervised` are the positions before a trained token. With `count_shared_prefix`, every row but the first
    leaves that many tokens out, which it is to attend to nevertheless.
    """

    share_prefix: bool

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        rows = [self.trim(row) for row in rows]
        prefix = count_shared_prefix(rows) if self.share_prefix else 0
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        cu_seqlens = [0]
        for number, row in enumerate(rows):
            begin = prefix if number else 0
            ids += row["input_ids"][begin:]
            # A row's first token is no one's next token.
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
            "segment_edges": tuple(cu_seqlens),
            "cu_seq_lens_q": cu_seqlens_tensor,
            "cu_seq_lens_k": cu_seqlens_tensor,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        return batch | {"shared_prefix": prefix} if prefix else batch

    @staticmethod
    def trim(row: dict[str, list[int]]) -> dict[str, list[int]]:
        """Without what follows the last trained token (a line feed, an unanswered turn): it has no part in the loss."""
        end = len(row["labels"]) - _count_leading_unsupervised(row["labels"][::-1])
        return {"input_ids": row["input_ids"][:end], "labels": row["labels"][:end]} if end else row


def move_to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def unpack_rows(batch: dict[str, Any]) -> list[list[int]]:
    """The ids of every row of a collated batch, flat or padded, in some order."""
    if "micro_batches" in batch:
        return [ids for micro_batch in batch["micro_batches"] for ids in unpack_rows(micro_batch)]
    if "segment_edges" not in batch:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        pairs = zip(batch["input_ids"], mask, strict=True)
        return [row[row_mask.bool()].tolist() for row, row_mask in pairs]
    ids, cu_seqlens = batch["input_ids"][0].tolist(), batch["segment_edges"]
    prefix_ids = ids[: batch.get("shared_prefix", 0)]
    return [(prefix_ids if i else []) + ids[cu_seqlens[i] : cu_seqlens[i + 1]] for i in range(len(cu_seqlens) - 1)]


def count_shared_prefix(rows: Sequence[dict[str, list[int]]]) -> int:
    """How many tokens all rows begin with, none of them trained, nor the one after them."""
    first = rows[0]["input_ids"]
    if len(rows) < 2:
        return 0
    length = min(_count_leading_unsupervised(row["labels"]) for row in rows) - 1
    for row in rows[1:]:
        length = next((i for i in range(length) if row["input_ids"][i] != first[i]), length)
    return length if length >= _MIN_SHARED_PREFIX_TOKENS else 0


def _count_leading_unsupervised(labels: Sequence[int]) -> int:
    """Number of tokens before the first trained one."""
    return next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
