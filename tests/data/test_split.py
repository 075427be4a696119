import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.data.split import choose_held_out, choose_test, repeat_by_weight
from lora_chat.errors import DataError

SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)
DIGESTS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=60, unique=True)
COPIES = st.lists(st.sampled_from([-5, 0, 3, 2**62, -(2**63)]), max_size=40)
many = settings(deadline=None, max_examples=100, derandomize=True)


def array(values):
    return np.array(values, np.int64)


@many
@given(digests=DIGESTS, share=SHARES, seed=SEEDS)
def test_holds_out_exactly_the_share_of_different_dialogues(digests, share, seed):
    held = choose_held_out(array(digests), share, seed)
    assert held.shape == (len(digests),)
    assert held.sum() == min(max(1, round(len(digests) * share)), len(digests) - 1)


@many
@given(digests=DIGESTS, share=SHARES, seed=SEEDS, max_held_out=st.integers(1, 70))
def test_holds_out_no_more_than_the_limit(digests, share, seed, max_held_out):
    wanted = max(1, min(round(len(digests) * share), max_held_out))
    assert choose_held_out(array(digests), share, seed, max_held_out).sum() == min(wanted, len(digests) - 1)


@many
@given(digests=COPIES, share=SHARES, seed=SEEDS)
def test_equal_dialogues_stay_together_and_no_set_is_empty(digests, share, seed):
    if len(set(digests)) < 2:
        with pytest.raises(DataError, match="At least 2 different"):
            choose_held_out(array(digests), share, seed)
        return
    held = choose_held_out(array(digests), share, seed)
    assert 0 < held.sum() < len(digests)
    assert not set(array(digests)[held]) & set(array(digests)[~held])


@many
@given(digests=DIGESTS | COPIES, shares=st.tuples(SHARES, SHARES), seed=SEEDS)
def test_test_set_shares_no_dialogue_with_training_or_validation(digests, shares, seed):
    if len(set(digests)) < 2:
        return
    held = choose_held_out(array(digests), shares[0], seed)
    if len(set(array(digests)[~held])) < 2:
        with pytest.raises(DataError, match="Too few different"):
            choose_test(array(digests), held, shares[1], seed)
        return
    test = choose_test(array(digests), held, shares[1], seed)
    sets = [set(array(digests)[chosen]) for chosen in (held, test, ~(held | test))]
    assert all(sets)
    assert sum(map(len, sets)) == len(set(digests))
    if len(set(digests)) == len(digests):
        assert test.sum() == min(max(1, round(len(digests) * shares[1])), (~held).sum() - 1)


@many
@given(digests=COPIES.filter(lambda d: len(set(d)) > 1), share=SHARES, seed=SEEDS)
def test_held_out_share_stays_small_despite_copies(digests, share, seed):
    held = choose_held_out(array(digests), share, seed)
    smallest = min(digests.count(one) for one in digests)
    assert held.sum() <= max(1, round(len(digests) * share), smallest)


@many
@given(digests=DIGESTS | COPIES.filter(lambda d: len(set(d)) > 1), share=SHARES, seed=SEEDS, order=SEEDS)
def test_order_of_the_file_does_not_change_the_split(digests, share, seed, order):
    mixed = list(digests)
    random.Random(order).shuffle(mixed)
    held, again = choose_held_out(array(digests), share, seed), choose_held_out(array(mixed), share, seed)
    assert set(array(digests)[held]) == set(array(mixed)[again])


def test_choice_depends_only_on_the_seed():
    digests = array(range(1000))
    choices = {tuple(np.flatnonzero(choose_held_out(digests, 0.1, seed))) for seed in range(20)}
    assert len(choices) == 20
    assert tuple(np.flatnonzero(choose_held_out(digests, 0.1, 7))) in choices


def test_other_dialogues_hardly_change_the_held_out_set():
    # With a share of a tenth of 1,000 and of 1,010 dialogues at most a few change sides.
    digests = array(range(1010))
    few, more = (choose_held_out(digests[:n], 0.1, 0)[:1000] for n in (1000, 1010))
    assert (few != more).sum() <= 10


def test_every_dialogue_is_held_out_as_often_as_any_other():
    counts = sum(choose_held_out(array(range(100)), 0.25, seed).astype(int) for seed in range(400))
    assert counts.min() > 60
    assert counts.max() < 140


def test_the_choice_is_the_same_on_every_machine():
    # A run does not list its dialogues, so the held-out ones are computed again.
    assert np.flatnonzero(choose_held_out(array(range(20)), 0.25, 0)).tolist() == [3, 10, 11, 16, 18]


@pytest.mark.parametrize(
    ("weight", "counts"),
    [(0.25, {0: 75, 1: 25}), (1, {1: 100}), (2, {2: 100}), (2.5, {2: 50, 3: 50}), (100, {100: 100})],
)
def test_a_weight_gives_the_exact_number_of_times(weight, counts):
    units = np.arange(100) * 3
    seen = repeat_by_weight(units, array(range(100)) * 7919, weight, 5)
    assert len(seen) == 100 * weight
    assert set(seen) <= set(units)
    times = [int((seen == unit).sum()) for unit in units]
    assert {n: times.count(n) for n in set(times)} == counts


@many
@given(digests=DIGESTS, weight=st.floats(0.01, 4), seed=SEEDS, order=SEEDS)
def test_sampled_part_depends_on_content_and_seed(digests, weight, seed, order):
    def seen(given):
        return sorted(array(given)[repeat_by_weight(np.arange(len(given)), array(given), weight, seed)])

    mixed = list(digests)
    random.Random(order).shuffle(mixed)
    assert seen(digests) == seen(mixed)
    assert abs(len(seen(digests)) - len(digests) * weight) <= 0.5 or len(seen(digests)) == 1


def test_another_seed_sees_another_part():
    parts = {tuple(repeat_by_weight(np.arange(50), array(range(50)), 0.5, seed)) for seed in range(10)}
    assert len(parts) == 10


def test_sampling_is_independent_of_the_held_out_choice():
    digests = array(range(1000))
    held = choose_held_out(digests, 0.5, 3)
    seen = set(repeat_by_weight(np.arange(1000), digests, 0.5, 3).tolist())
    assert 150 < len(seen & set(np.flatnonzero(held).tolist())) < 350
