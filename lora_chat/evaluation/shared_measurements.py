"""Measurements that the processes of a group share: each computes a part, and `exchange` gives all parts to all.

The batches are those of one process, so the results have the same bits for any number of processes.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.evaluation.loss import RowLosses, measure_rows
from lora_chat.inference.generation import generate_ids, plan_batches
from lora_chat.processes.group import ProcessGroup
from lora_chat.processes.shares import share_by_size

if TYPE_CHECKING:
    from typing import TypeVar

    from numpy.typing import NDArray
    from peft import PeftModel
    from transformers import PreTrainedModel

    _Number = TypeVar("_Number", np.float64, np.int64)


class PendingLosses:
    """Losses of rows, complete after the exchange."""

    def __init__(self, rows: int) -> None:
        self.table = np.zeros((rows, 3))
        """Loss, right tokens and tokens of each row; zeros where another process computes."""

    def write(self, numbers: Sequence[int], losses: RowLosses) -> None:
        """Write the losses of some rows."""
        self.table[[*numbers]] = np.array([losses.losses, losses.right_tokens, losses.tokens], np.float64).T

    def read(self) -> RowLosses:
        """Return the losses."""
        losses, right_tokens, tokens = self.table.T.tolist()
        return RowLosses(tuple(losses), tuple(map(int, right_tokens)), tuple(map(int, tokens)))


class SharedMeasurements:
    """Losses and replies of one comparison; one exchange at its end, so that no process waits before.

    All processes of the group call the same methods in the same order. The default group is this process.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group or ProcessGroup()
        self._batch_sizes = [0] * self._group.size
        """Size of the batches of replies that each process has taken, so that small sets are balanced together."""
        self._digest = hashlib.sha256()
        """Digest of everything that is measured, of which each process computes a part."""
        self._losses: list[PendingLosses] = []
        self._replies: list[list[list[int]]] = []

    def measure_rows(self, model: "PreTrainedModel | PeftModel", rows: Sequence[EncodedDialogue]) -> PendingLosses:
        """Measure this process's share of rows, which are computed one by one."""
        pending, group = PendingLosses(len(rows)), self._group
        share: Sequence[int] = range(len(rows))
        own = rows
        if group.size > 1:
            share = share_by_size([self._note_row(row) for row in rows], group.size)[group.rank.index]
            own = [rows[number] for number in share]
        if len(own):
            pending.write(share, measure_rows(model, own))
        self._digest.update(f"{len(rows)} rows ".encode())
        self._losses.append(pending)
        return pending

    def generate(
        self,
        model: "PreTrainedModel | PeftModel",
        pad: int,
        prompts: Sequence[Sequence[int]],
        stop_ids: Sequence[int],
        max_new_tokens: int,
        generation: GenerationSection = GREEDY,
    ) -> list[list[int]]:
        """Generate this process's share of the replies as `generate_ids` does; the others come with the exchange."""
        if self._group.size == 1:
            return generate_ids(model, pad, prompts, stop_ids, max_new_tokens, generation=generation)
        self._note([pad, [*map(list, prompts)], [*stop_ids], max_new_tokens, generation.model_dump(mode="json")])
        replies: list[list[int]] = [[] for _ in prompts]
        for batch in self._take_batches(model, pad, prompts, max_new_tokens):
            chosen = [prompts[number] for number in batch]
            answers = generate_ids(
                model, pad, chosen, stop_ids, max_new_tokens, len(batch), generation=generation, numbers=batch
            )
            for number, answer in zip(batch, answers, strict=True):
                replies[number] = answer
        self._replies.append(replies)
        return replies

    def exchange(self) -> None:
        """Complete all results that were returned before."""
        if self._group.size == 1:
            return
        self._group.check_equal("rows and replies to measure", self._digest.hexdigest())
        if self._losses:
            self._exchange_losses()
        replies = [reply for several in self._replies for reply in several]
        if replies:
            self._exchange_replies(replies)
        self._losses, self._replies = [], []

    def _exchange_losses(self) -> None:
        """Add the rows of the other processes."""
        values = self._sum(np.concatenate([pending.table for pending in self._losses]))
        for pending in self._losses:
            pending.table, values = values[: len(pending.table)], values[len(pending.table) :]

    def _exchange_replies(self, replies: Sequence[list[int]]) -> None:
        """Fill in the replies of the other processes."""
        lengths = self._sum(np.array([len(reply) for reply in replies], np.int64))
        ends = np.cumsum(lengths)
        ids = np.zeros(int(ends[-1]), np.int64)
        for end, length, reply in zip(ends, lengths, replies, strict=True):
            if reply:
                ids[end - length : end] = reply
        for reply, part in zip(replies, np.split(self._sum(ids), ends[:-1]), strict=True):
            reply[:] = part.tolist()

    def _take_batches(
        self, model: "PreTrainedModel | PeftModel", pad: int, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> list[list[int]]:
        """Return the batches that this process computes: the largest that is left goes to the least busy process."""
        batches = plan_batches(model, pad, prompts, max_new_tokens)
        self._note(batches)
        sizes = [sum(len(prompts[number]) + max_new_tokens for number in batch) for batch in batches]
        taken = []
        for number in sorted(range(len(batches)), key=lambda i: (-sizes[i], i)):
            process = min(range(self._group.size), key=lambda i: (self._batch_sizes[i], i))
            self._batch_sizes[process] += sizes[number]
            if process == self._group.rank.index:
                taken.append(number)
        return [batches[number] for number in sorted(taken)]

    def _note(self, values: object) -> None:
        """Add plain values to the digest."""
        self._digest.update(repr(values).encode())

    def _note_row(self, row: EncodedDialogue) -> int:
        """Add a row to the digest, and return its length."""
        ids = np.asarray(row.input_ids, np.int64)
        self._digest.update(ids.tobytes() + np.asarray(row.labels, np.int64).tobytes())
        return len(ids)

    def _sum(self, values: "NDArray[_Number]") -> "NDArray[_Number]":
        """Return the sum of an array over the processes, of which one has the value and the others have zero."""
        import torch

        summed: NDArray[_Number] = self._group.sum_(torch.from_numpy(values)).numpy()
        return summed
