"""Equal numbers of forwards and backwards in all processes, which must gather the layers of a sharded base together."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lora_chat.data.encoding.encode import IGNORE_INDEX
from lora_chat.models.sharded_base import is_sharded
from lora_chat.processes.group import ProcessGroup
from lora_chat.training.fast_path.packed_batch import EncodedIds
from lora_chat.training.step_collator import StepBatch, split_rows

IDLE_COUNT = math.inf
"""Number of tokens by which the loss of an idle pass is divided, so that it adds zero to all gradients."""


class LockStep:
    """Idle passes of the processes whose share of a step has fewer passes than another one's."""

    def __init__(self, model: torch.nn.Module, group: ProcessGroup) -> None:
        self._group = group if is_sharded(model) else None

    @property
    def is_needed(self) -> bool:
        """Return whether the base is sharded."""
        return self._group is not None

    def count_idle_passes(self, own_passes: int) -> int:
        """Return the number of passes that this process must add to `own_passes`; 0 if the base is not sharded.

        It is called before the passes, because processes that still gather layers cannot exchange numbers.
        """
        return int(self._group.largest(own_passes)) - own_passes if self._group else 0

    @staticmethod
    def make_idle_batch(step: StepBatch, collator: Callable[[Sequence[EncodedIds]], dict[str, object]]) -> StepBatch:
        """Return a micro-batch of the shortest dialogue of a step, if possible of one with a supervised token."""
        rows = zip(split_rows(step), np.split(step["row_labels"], step["row_lengths"].cumsum()[:-1]), strict=True)
        encoded: list[EncodedIds] = [{"input_ids": ids, "labels": labels.tolist()} for ids, labels in rows]
        supervised = [row for row in encoded if any(label != IGNORE_INDEX for label in row["labels"][1:])]
        return collator([min(supervised or encoded, key=lambda row: len(row["labels"]))])
