"""Lengths of rows, prompts and replies, for the planner."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_chat.data.dataset import EncodedRows
from lora_chat.data.row_lengths import RowLengths

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]

__all__ = ["DataLengths", "RowLengths", "measure_rows"]


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
    """Return the lengths of all rows in order."""
    return rows.measured
