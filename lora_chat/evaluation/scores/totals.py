"""Figures of summed statistics, vectorised over all axes but the last, so that resamples are one matrix product."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def divide(numerator: "Array", denominator: "Array") -> "Array":
    """Return the quotient, and 0 where the denominator is 0."""
    import numpy as np

    result: Array = np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=float), where=denominator != 0)
    return result


def mean(totals: "Array") -> "Array":
    """Return the mean of totals (..., 2), which are the sum of the values and the number of counted items."""
    return divide(totals[..., 0], totals[..., 1])
