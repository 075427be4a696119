"""Lengths of rows and their supervised tokens, read from columns on disk, for the planner."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_chat.data.dataset import EncodedRows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RowLengths:
    """Token counts of rows; each field is (rows,)."""

    tokens: "Numbers"
    through_last_label: "Numbers"
    """Tokens up to the last one with loss; the fast path drops the rest of a row."""
    supervised: "Numbers"

    @property
    def longest(self) -> int:
        """Return the tokens of the longest row, at least 1."""
        return int(self.tokens.max(initial=1))

    @property
    def most_supervised(self) -> int:
        """Return the largest number of supervised tokens of a row, at least 1."""
        return int(self.supervised.max(initial=1))

    @property
    def mean_tokens(self) -> float:
        """Return the mean length of a row; 0 without rows."""
        return float(self.tokens.mean()) if len(self.tokens) else 0.0


@dataclass(frozen=True)
class DataLengths:
    """The token counts from which memory and time are estimated."""

    train: RowLengths
    validation: RowLengths
    prompt_tokens: tuple[int, ...]
    """Tokens of each prompt that is answered after training."""
    max_reply_tokens: int
    """Length of the longest reply, in tokens."""
    shared_prefix: int = 0
    """Tokens that all dialogues begin with, which a micro-batch has once."""
    general_prompt_tokens: tuple[int, ...] = ()
    """Tokens of the prompts of all general items that may be asked after training."""
    general_counts: tuple[int, ...] = ()
    """Numbers of general items that a plan can choose, in ascending order."""
    is_estimated: bool = False
    """Whether the tokens were counted with another tokenizer."""
    test: RowLengths | None = None
    """Rows of the test set; None or none of them without one."""
    recital_replies: int = 0
    """Number of training replies that both models are asked to complete after training."""
    optional_prompts: int = 0
    """Number of prompts, the last ones, that are only answered if it does not take long."""

    @property
    def compared(self) -> RowLengths:
        """Return the rows on which base and adapted model are compared: the test set if there is one."""
        return self.test if self.test is not None and len(self.test.tokens) else self.validation

    @property
    def evaluated_tokens(self) -> "Numbers":
        """Return the tokens of each row that each model reads once after training, (rows,)."""
        import numpy as np

        mean = math.ceil(self.train.mean_tokens)
        return np.append(self.compared.tokens, np.full(min(self.recital_replies, len(self.train.tokens)), mean))

    @property
    def parity(self) -> RowLengths:
        """Return the rows of a parity check: the validation set if there is one, else the test set."""
        return self.validation if len(self.validation.tokens) else self.compared

    @property
    def longest_measured(self) -> int:
        """Return the tokens of the longest row of which a loss is measured, at least 1."""
        return max(self.validation.longest, self.compared.longest)

    @property
    def most_supervised_measured(self) -> int:
        """Return the largest number of supervised tokens of a row of which a loss is measured, at least 1."""
        return max(self.validation.most_supervised, self.compared.most_supervised)

    def with_optional_prompts(self, count: int) -> "DataLengths":
        """Return the same with fewer optional prompts."""
        left_out = self.optional_prompts - count
        prompts = self.prompt_tokens[: len(self.prompt_tokens) - left_out]
        return replace(self, prompt_tokens=prompts, optional_prompts=count)


def measure_rows(rows: EncodedRows) -> RowLengths:
    """Measure all rows in order, from whole columns."""
    import numpy as np

    parts = [_measure_chunk(chunk) for chunk in rows.dataset.data.column("labels").chunks if len(chunk)]
    if not parts:
        none = np.zeros(0, np.int64)
        return RowLengths(none, none, none)
    tokens, through_last_label, supervised = (np.concatenate(column) for column in zip(*parts, strict=True))
    index_table = rows.dataset._indices
    if index_table is not None:
        indices = np.asarray(index_table.column(0))
        tokens, through_last_label, supervised = tokens[indices], through_last_label[indices], supervised[indices]
    return RowLengths(tokens, through_last_label, supervised)


def _measure_chunk(masks: "pa.ListArray") -> tuple["Numbers", "Numbers", "Numbers"]:
    """Return the three fields of `RowLengths`, each (rows,), of a column of masks of tokens with loss."""
    import numpy as np

    offsets = np.asarray(masks.offsets)
    # Positions of all tokens with loss, in the concatenation of the rows.
    labelled = np.flatnonzero(masks.values.to_numpy(zero_copy_only=False))
    begins, ends = offsets[:-1], offsets[1:]
    first, after = labelled.searchsorted(begins), labelled.searchsorted(ends)
    supervised = after - first
    # A row without loss is not shortened.
    last = np.append(labelled, 0)[np.maximum(after - 1, 0)]
    through_last_label = np.where(supervised > 0, last - begins + 1, ends - begins)
    return ends - begins, through_last_label, supervised
