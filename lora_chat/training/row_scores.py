"""The losses and the predicted tokens of each validation row, and the noise of the difference of two measurements."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]

Measure = Literal["validation_loss", "token_accuracy"]


@dataclass(frozen=True)
class RowScores:
    """One measurement of the validation set; each field is (rows,)."""

    losses: "Numbers"
    """Summed cross entropy of each row's supervised tokens, in nats, as float64."""
    hits: "Numbers"
    """Number of supervised tokens of each row that the model predicts, as int64."""
    tokens: "Numbers"
    """Number of supervised tokens of each row, as int64."""

    @property
    def loss(self) -> float:
        """Return the mean cross entropy of a supervised token, in nats."""
        return float(self.losses.sum() / self.tokens.sum())

    @property
    def token_accuracy(self) -> float:
        """Return the share of the supervised tokens that the model predicts, 0 to 1."""
        return float(self.hits.sum() / self.tokens.sum())

    def value(self, measure: Measure) -> float:
        """Return the figure of a measure."""
        return self.loss if measure == "validation_loss" else self.token_accuracy

    def cost(self, measure: Measure) -> float:
        """Return the figure of a measure, or its complement, so that a lower one is better."""
        return self.loss if measure == "validation_loss" else 1 - self.token_accuracy

    def compare(self, other: "RowScores", measure: Measure) -> "PairedDifference":
        """Return how much higher the cost of this measurement is than that of another on the same rows.

        The mean over tokens is a ratio of two sums over rows, so that its standard error comes from the residuals of
        the rows (Cochran, Sampling Techniques, 1977, section 6.4).
        """
        costs = self.losses - other.losses if measure == "validation_loss" else (other.hits - self.hits).astype(float)
        rows, total = len(costs), float(self.tokens.sum())
        mean = float(costs.sum()) / total
        if rows < 2:
            return PairedDifference(mean, math.inf)
        residuals = costs - mean * self.tokens
        return PairedDifference(mean, math.sqrt(rows / (rows - 1) * float((residuals**2).sum())) / total)


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference per supervised token of two measurements on the same rows."""

    mean: float
    standard_error: float

    @property
    def is_higher(self) -> bool:
        """Return whether the first measurement is higher by more than one standard error."""
        return self.mean > self.standard_error
