"""Intervals and tests for figures of two models on the same items.

Sources: percentile bootstrap over items (Efron and Tibshirani 1993, chapter 13) with the wider levels for few items of
Hesterberg 2015 (The American Statistician 69, section 5); exact McNemar test (McNemar 1947); interval of a share
(Wilson 1927) and of a difference of paired shares (Bonett and Price 2012, Journal of Educational and Behavioral
Statistics 37).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Statistics: TypeAlias = NDArray[np.float64]
"""Additive statistics, (..., statistics)."""
Reduce: TypeAlias = Callable[[Statistics], Statistics]
"""Function from summed statistics (..., statistics) to figures (...)."""
Interval: TypeAlias = tuple[float, float]

RESAMPLES = 10_000
"""Number of times that the items are drawn again."""
MIN_ITEMS = 6
"""Smallest number of items that can show a difference: with fewer even a sign test cannot reach 5 %."""
SIGNIFICANCE = 0.05
"""Largest p-value that is called a difference. Intervals contain the true value in 95 % of all samples."""
_NORMAL = NormalDist()
_Z_95 = 1.959963984540054
_Z_POWER_80 = 0.8416212335729143
_CHUNK_VALUES = 2**21
"""Number of items that are drawn together, which bounds the memory."""


@dataclass(frozen=True)
class PairedFigures:
    """A figure of two models on the same items, with 95 % intervals."""

    base: float
    adapted: float
    base_interval: Interval
    adapted_interval: Interval
    difference_interval: Interval
    """Interval of the figure of the adapted model minus that of the base."""
    p_value: float
    """Probability of a difference as large as this if the models are equal; two-sided."""
    needed_items: int | None
    """Number of items that would show a difference of this size in 80 % of all samples; None if they are equal."""

    @property
    def is_finite(self) -> bool:
        """Return whether all figures and intervals are finite."""
        intervals = (*self.base_interval, *self.adapted_interval, *self.difference_interval)
        return all(map(math.isfinite, (self.base, self.adapted, *intervals)))


def compare_by_bootstrap(
    base: Statistics, adapted: Statistics, reduce: Reduce, *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedFigures:
    """Compare two models by statistics (items, statistics) of the same items, which are resampled together."""
    items, width = base.shape
    both = np.concatenate([base, adapted], axis=1)
    random = np.random.default_rng(seed)
    sums = np.empty((resamples, 2 * width))
    rows = max(1, _CHUNK_VALUES // items)
    for begin in range(0, resamples, rows):
        count = min(rows, resamples - begin)
        drawn = random.integers(0, items, (count, items))
        offsets = np.arange(count)[:, None] * items
        weights = np.bincount((drawn + offsets).ravel(), minlength=count * items).reshape(count, items)
        sums[begin : begin + count] = weights @ both
    bases, adapteds = reduce(sums[:, :width]), reduce(sums[:, width:])
    with np.errstate(invalid="ignore"):
        differences = adapteds - bases
    levels = _wider_levels(items)
    point = float(reduce(base.sum(axis=0))), float(reduce(adapted.sum(axis=0)))
    return PairedFigures(
        *point,
        _quantiles(bases, levels),
        _quantiles(adapteds, levels),
        _quantiles(differences, levels),
        _p_value(differences, items),
        needed_items(items, point[1] - point[0], _standard_deviation(differences)),
    )


def _p_value(differences: Statistics, items: int) -> float:
    """Return the two-sided p-value of resampled differences from zero, larger for few items as their interval is wider.

    It is 0.05 where the interval ends at zero.
    """
    falls, rises = int((differences <= 0).sum()), int((differences >= 0).sum())
    tail = min(0.5, (min(falls, rises) + 1) / (len(differences) + 1))
    return 2 * _NORMAL.cdf(_NORMAL.inv_cdf(tail) / _widening(items))


def _standard_deviation(values: Statistics) -> float:
    """Return the standard deviation of resampled figures; not a number if one is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.std(values))


def _quantiles(values: Statistics, levels: Interval) -> Interval:
    """Return the quantiles of the finite resampled figures at two levels; not a number without any."""
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, levels)
    return float(low), float(high)


def _wider_levels(items: int) -> Interval:
    """Return the levels of a percentile interval of 95 %, wider for few items (Hesterberg 2015)."""
    tail = _NORMAL.cdf(-_Z_95 * _widening(items))
    return tail, 1 - tail


def _widening(items: int) -> float:
    """Return by how much an interval of normal quantiles must be widened for few items."""
    return math.sqrt(items / (items - 1)) * _t_quantile(items - 1) / _Z_95 if items > 2 else 10.0


def _t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 1964, 26.7.5, four terms)."""
    z = _Z_95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


def compare_right_or_wrong(base: NDArray[np.bool_], adapted: NDArray[np.bool_]) -> PairedFigures:
    """Compare the shares of right replies of two models, by whether each reply (items,) is right."""
    items = len(base)
    fixed, broken = int((~base & adapted).sum()), int((base & ~adapted).sum())
    shares = float(base.mean()), float(adapted.mean())
    spread = math.sqrt(max(0.0, (fixed + broken) - (fixed - broken) ** 2 / items)) / items
    return PairedFigures(
        *shares,
        wilson_interval(shares[0], items),
        wilson_interval(shares[1], items),
        paired_share_interval(fixed, broken, items),
        mcnemar_p_value(fixed, broken),
        needed_items(items, shares[1] - shares[0], spread),
    )


def mcnemar_p_value(fixed: int, broken: int) -> float:
    """Return the exact two-sided p-value if `fixed` replies became right and `broken` ones became wrong."""
    changed = fixed + broken
    logs = (_log_choose(changed, i) - changed * math.log(2) for i in range(min(fixed, broken) + 1))
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def paired_share_interval(fixed: int, broken: int, items: int) -> Interval:
    """Return the 95 % interval of the rise of a share on the same items (Bonett and Price 2012)."""
    b, c, n = fixed + 1, broken + 1, items + 2
    middle = (b - c) / n
    spread = _Z_95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, middle - spread), min(1.0, middle + spread)


def wilson_interval(share: float, count: int) -> Interval:
    """Return the 95 % interval of a share of `count` answers (Wilson 1927; Brown, Cai and DasGupta 2001)."""
    z = _Z_95
    middle, spread = (
        share + z * z / (2 * count),
        z * math.sqrt(max(0, share * (1 - share)) / count + (z / (2 * count)) ** 2),
    )
    scale = 1 + z * z / count
    return (middle - spread) / scale, (middle + spread) / scale


def needed_items(items: int, difference: float, standard_error: float) -> int | None:
    """Return how many items would show this difference with a power of 80 %, rounded up to two digits.

    `standard_error` is that of the difference on `items` items. None for equal figures.
    """
    if not difference or not math.isfinite(difference) or not math.isfinite(standard_error):
        return None
    exact = items * ((_Z_95 + _Z_POWER_80) * standard_error / difference) ** 2
    if exact > 1e9:
        return None
    needed = max(MIN_ITEMS, math.ceil(exact))
    unit = int(10 ** max(0, len(str(needed)) - 2))
    return -(-needed // unit) * unit
