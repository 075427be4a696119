"""Shares of dialogues: balanced, complete and independent of the process that asks."""

from hypothesis import given
from hypothesis import strategies as st

from lora_chat.processes.shares import share_by_size


@given(st.lists(st.integers(1, 3000), max_size=40), st.integers(1, 9))
def test_every_dialogue_is_in_one_share_and_shares_are_balanced(sizes, count):
    shares = share_by_size(sizes, count)
    assert len(shares) == count
    assert sorted(number for share in shares for number in share) == list(range(len(sizes)))
    totals = [sum(sizes[number] for number in share) for share in shares]
    assert max(totals) - min(totals) <= max(sizes, default=0)
    assert max(totals) <= sum(sizes) / count + max(sizes, default=0)


def test_one_process_has_all_dialogues():
    assert share_by_size([3, 1, 2], 1) == [[0, 1, 2]]


def test_a_step_with_fewer_dialogues_than_processes_leaves_shares_empty():
    assert share_by_size([5, 9], 3) == [[1], [0], []]
