"""Intervals contain the true value in about 95 % of all samples, and tests have their exact values."""

import math

import numpy as np
import pytest

from lora_chat.evaluation.intervals import (
    compare_by_bootstrap,
    compare_right_or_wrong,
    mcnemar_p_value,
    needed_items,
    paired_share_interval,
    wilson_interval,
)
from lora_chat.evaluation.metrics import count_each, reduce_to_mean, reduce_to_perplexity

SIMULATIONS = 400


def losses(random, items, mean):
    """Return skewed losses of rows with different numbers of tokens, (items, 2)."""
    tokens = random.integers(5, 60, items)
    return np.stack([tokens * random.gamma(4, mean / 4, items), tokens], axis=1).astype(float)


@pytest.mark.parametrize("items", [12, 60])
def test_the_interval_of_a_mean_loss_covers_the_truth(items):
    random, covered, differs = np.random.default_rng(1), 0, 0
    for _ in range(SIMULATIONS):
        base = losses(random, items, 2.0)
        adapted = base * [[1.0, 1.0]] + random.normal(0, 0.3, (items, 1)) * base[:, 1:] * [[1.0, 0.0]]
        found = compare_by_bootstrap(base, adapted, reduce_to_mean, seed=2, resamples=500)
        covered += found.base_interval[0] <= 2.0 <= found.base_interval[1]
        differs += found.difference_interval[0] <= 0.0 <= found.difference_interval[1]
    assert 0.915 <= covered / SIMULATIONS <= 0.985
    assert 0.915 <= differs / SIMULATIONS <= 0.985


@pytest.mark.parametrize(("items", "base_share", "fix", "breaks"), [(20, 0.3, 0.3, 0.1), (80, 0.6, 0.1, 0.1)])
def test_the_interval_of_a_paired_share_covers_the_truth(items, base_share, fix, breaks):
    random, covered, false_alarms = np.random.default_rng(3), 0, 0
    truth = (1 - base_share) * fix - base_share * breaks
    for _ in range(2000):
        base = random.random(items) < base_share
        changed = random.random(items) < np.where(base, breaks, fix)
        found = compare_right_or_wrong(base, base ^ changed)
        covered += found.difference_interval[0] <= truth <= found.difference_interval[1]
        equal = compare_right_or_wrong(base, random.random(items) < base_share)
        false_alarms += equal.p_value < 0.05
    assert 0.93 <= covered / 2000 <= 0.985
    assert false_alarms / 2000 <= 0.055


@pytest.mark.parametrize("items", [8, 40])
def test_equal_models_are_called_different_in_about_five_percent(items):
    random, alarms, contradictions = np.random.default_rng(4), 0, 0
    for _ in range(SIMULATIONS):
        base = losses(random, items, 2.0)
        adapted = base.copy()
        adapted[:, 0] += random.normal(0, 0.5, items) * base[:, 1]
        found = compare_by_bootstrap(base, adapted, reduce_to_mean, resamples=500)
        is_shown = found.p_value < 0.05
        alarms += is_shown
        contradictions += is_shown == (found.difference_interval[0] <= 0 <= found.difference_interval[1])
    assert alarms / SIMULATIONS <= 0.075
    assert contradictions / SIMULATIONS <= 0.04  # the levels of 500 resamples are coarse


def test_six_items_can_show_a_difference():
    base = np.array([[20.0 + i, 10.0] for i in range(6)])
    found = compare_by_bootstrap(base, base - [[5.0, 0.0]], reduce_to_mean)
    assert found.p_value < 0.05


def test_the_needed_number_of_items_shows_the_difference_with_a_power_of_80_percent():
    random = np.random.default_rng(5)
    needed = needed_items(50, 0.2, 1.0 / math.sqrt(50))
    assert needed is not None
    values = random.normal(0.2, 1.0, (2000, needed))
    z = values.mean(axis=1) / (values.std(axis=1, ddof=1) / math.sqrt(needed))
    assert 0.77 <= float((np.abs(z) > 1.96).mean()) <= 0.84


@pytest.mark.parametrize(
    ("fixed", "broken", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (10, 2, 0.03857421875), (3, 3, 1.0)],
)
def test_mcnemar_is_exact(fixed, broken, expected):
    assert mcnemar_p_value(fixed, broken) == pytest.approx(expected)
    assert mcnemar_p_value(broken, fixed) == pytest.approx(expected)


def test_mcnemar_of_many_items_is_finite():
    assert mcnemar_p_value(60_000, 40_000) < 1e-12
    assert 0.5 < mcnemar_p_value(50_000, 50_100) < 1


def test_intervals_of_shares():
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # statsmodels 0.14
    low, high = paired_share_interval(0, 0, 100)
    assert low < 0 < high  # equal replies do not prove equal models
    assert paired_share_interval(3, 9, 40)[0] == pytest.approx(-paired_share_interval(9, 3, 40)[1])


def test_equal_statistics_have_no_difference():
    scores = count_each([0.0, 1.0, 0.5] * 5)
    found = compare_by_bootstrap(scores, scores, reduce_to_mean)
    assert found.difference_interval == (0, 0)
    assert found.p_value == 1.0
    assert found.needed_items is None


def test_the_same_seed_gives_the_same_figures_and_items_are_paired():
    random = np.random.default_rng(6)
    base = losses(random, 300, 2.0)
    adapted = base * [[0.95, 1.0]]
    found = compare_by_bootstrap(base, adapted, reduce_to_mean)
    assert found == compare_by_bootstrap(base, adapted, reduce_to_mean)
    width = found.base_interval[1] - found.base_interval[0]
    assert found.difference_interval[1] - found.difference_interval[0] < 0.2 * width
    assert found.p_value < 0.001


def test_values_that_overflow_are_not_called_a_difference():
    scores = np.array([[800.0, 1.0]] * 10)
    found = compare_by_bootstrap(scores, scores * [[2.0, 1.0]], reduce_to_perplexity)
    assert not found.is_finite
