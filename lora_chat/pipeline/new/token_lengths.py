"""The lengths of the data in tokens, from which the length limits of a recipe follow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.data.lengths import RowLengths
from lora_chat.models.base_config import BaseConfig
from lora_chat.models.shape import read_shape
from lora_chat.pipeline.estimate import open_planned_tokenizer
from lora_chat.pipeline.load_data import find_data_files, read_data
from lora_chat.system.hardware import Hardware

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]

MEASURED_LENGTH = 8192
"""Largest number of tokens of a row that is measured; longer rows are counted."""
_STEP = 64
"""Multiple to which a length limit is rounded up."""
_MARGIN = 1.15
"""Factor for lengths that were counted with another tokenizer, whose chat template may differ too."""
_SHARES = (0.99, 0.95, 0.9)
"""Shares of the rows that a shorter limit lets through."""
MIN_BLOCKS = 32
"""Smallest number of blocks of plain text that the block length aims at."""
_MAX_BLOCK, _MIN_BLOCK = 1024, 64
_REPLY_SHARE = 0.95
"""Share of replies that fit `evaluation.max_new_tokens`."""


@dataclass(frozen=True)
class LengthLimit:
    """A limit of `data.max_length`, and the rows that are above it."""

    tokens: int
    num_above: int


@dataclass(frozen=True)
class TokenLengths:
    """Token counts of the data."""

    rows: RowLengths
    num_longer: int
    """Number of rows above MEASURED_LENGTH."""
    num_distinct: int
    """Number of different rows."""
    typical_reply: int
    """Tokens that 95 % of the replies do not exceed; 0 without replies."""
    is_estimated: bool
    """Whether they were counted with the embedded tokenizer, because that of the base is not on this machine."""
    positions: int | None
    """Context window of the base whose tokenizer counted."""

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return len(self.rows.tokens) + self.num_longer

    @property
    def total(self) -> int:
        """Return the tokens of all measured rows."""
        return int(self.rows.tokens.sum())

    def percentile(self, share: float) -> int:
        """Return the length that a share of the measured rows does not exceed."""
        import numpy as np

        rank = max(0, math.ceil(share * len(self.rows.tokens)) - 1)
        return int(np.partition(self.rows.tokens, rank)[rank])

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON."""
        return {
            "rows": self.count,
            "total": self.total,
            "median": self.percentile(0.5),
            "percentile_95": self.percentile(0.95),
            "longest": self.rows.longest,
            "rows_not_measured": self.num_longer,
            "reply_percentile_95": self.typical_reply,
            "is_estimated": self.is_estimated,
        }

    def list_limits(self) -> list[LengthLimit]:
        """Return limits for dialogues, the one that no measured row exceeds first, and then shorter ones."""
        limits = [self._limit_at(self.rows.longest)]
        for share in _SHARES:
            limit = self._limit_at(self.percentile(share))
            if limit.tokens < limits[-1].tokens:
                limits.append(limit)
        return limits

    def _limit_at(self, tokens: int) -> LengthLimit:
        wanted = tokens * (_MARGIN if self.is_estimated else 1)
        limit = min(MEASURED_LENGTH, _STEP * math.ceil(wanted / _STEP))
        if self.positions is not None and not self.is_estimated:
            limit = min(limit, self.positions)
        return LengthLimit(limit, int((self.rows.tokens > limit).sum()) + self.num_longer)

    def choose_block_length(self) -> int:
        """Return the length of blocks of plain text: 1,024, or less for a text that would have few blocks."""
        length = _MAX_BLOCK
        while length > _MIN_BLOCK and self.total / length < 2 * MIN_BLOCKS:
            length //= 2
        return length if self.positions is None else min(length, self.positions)


def measure_tokens(recipe: Recipe, base: BaseConfig, hardware: Hardware, replies: Sequence[str]) -> TokenLengths:
    """Read and encode all rows of a recipe, and return their lengths.

    The tokenizer is the base's, or the embedded one if it is missing. Raises DataError as `sft` does.
    """
    plan = make_plan(recipe, hardware)
    files = find_data_files(plan)
    tokenizer, stop_ids = open_planned_tokenizer(plan, base)
    positions = read_shape(base.config, base.name).max_positions if base.folder is not None else None
    data = read_data(plan, files, tokenizer, stop_ids, positions)
    lengths = [len(ids) for ids in tokenizer([*replies], add_special_tokens=False)["input_ids"]] if replies else []
    return TokenLengths(
        rows=data.train.rows.measured,
        num_longer=data.statistics.total.dropped,
        num_distinct=len(data.train) - data.statistics.duplicates,
        typical_reply=sorted(lengths)[max(0, math.ceil(_REPLY_SHARE * len(lengths)) - 1)] if lengths else 0,
        is_estimated=base.folder is None,
        positions=positions,
    )
