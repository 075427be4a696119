"""Scales and ticks of a chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A mapping from values to positions, linear or logarithmic."""

    low: float
    high: float
    start: float
    """Position of the lowest value."""
    end: float
    """Position of the highest value."""
    is_log: bool = False

    def map(self, value: float) -> float:
        """Return the position of a value."""
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(max(value, self.low)))
            if self.is_log
            else (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def choose_ticks(self, count: int) -> list[float]:
        """Return about `count` round values between the lowest and the highest."""
        if self.is_log:
            return _choose_log_ticks(self.low, self.high, count)
        step = _round_step((self.high - self.low) / max(1, count))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def fit_scale(values: Sequence[float], start: float, end: float, *, is_log: bool = False) -> Scale:
    """Return the scale of a vertical axis that shows all values, with some space around them."""
    low, high = min(values), max(values)
    if is_log:
        positive = [value for value in values if value > 0]
        low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
        return Scale(low / 1.1, high * 1.1, start, end, is_log=True)
    if 0 <= low < 0.6 * high:
        low = 0.0
    space = (high - low) * 0.05 or max(abs(high), 1e-9) * 0.05
    return Scale(low - (0.0 if low == 0 else space), high + space, start, end)


def format_tick(value: float) -> str:
    """Format the label of a tick."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _round_step(step: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    if not step > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step * 0.999), 10 * power)


def _choose_log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return round values of a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= min(3, count):
            return ticks[:: -(-len(ticks) // (2 * count))]
    return Scale(low, high, 0, 1).choose_ticks(count)
