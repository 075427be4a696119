"""Bytes as a function of tokens, through a few measured points."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.planning.layer_memory import MicroBatch


@dataclass(frozen=True)
class Curve:
    """constant + per_token * T + per_pair * T * L bytes, for T tokens in rows of at most L."""

    constant: float
    per_token: float
    per_pair: float

    @classmethod
    def through(cls, tokens: Sequence[int], values: Sequence[int]) -> "Curve":
        """Return the curve through three points of one row each.

        Bytes that grow more slowly than tokens, as in a sliding window, are continued by a straight line.
        """
        (x0, x1, x2), (y0, y1, y2) = tokens, values
        slope = (y2 - y1) / (x2 - x1)
        per_pair = (slope - (y1 - y0) / (x1 - x0)) / (x2 - x0)
        if per_pair * x2 * x2 < 0.01 * abs(y2):  # rounding to whole blocks is not growth
            return cls(y2 - slope * x2, slope, 0.0)
        per_token = slope - per_pair * (x1 + x2)
        return cls(y2 - per_token * x2 - per_pair * x2 * x2, per_token, per_pair)

    def value(self, batch: MicroBatch) -> int:
        """Return the bytes for a micro-batch."""
        pairs = batch.tokens * batch.longest
        return max(0, round(self.constant + self.per_token * batch.tokens + self.per_pair * pairs))
