"""Groups of processes: each tells the others, and all have the same result."""

import pytest
import torch
from ranks import RankError, run_ranks

from lora_chat.errors import IntegrityError
from lora_chat.processes.group import ProcessGroup, current_group

pytestmark = pytest.mark.slow  # imports libraries in a server of processes


def _talk() -> dict:
    group = current_group()
    index = group.rank.index
    return {
        "sum": group.sum_(torch.tensor([1.0 + index, 0.1])).tolist(),
        "exchange": group.exchange([index, 2.0**52 + 1]),
        "share": group.share_json({"from": index}),
        "gather": group.gather_json(f"rank {index}"),
        "largest": group.largest(-index),
    }


def _differ() -> None:
    group = current_group()
    group.check_equal("adapters", "same")
    group.check_equal("adapters", "other" if group.rank.index == 1 else "first")


def test_every_process_has_the_same_result():
    first, second, third = run_ranks(3, _talk)
    assert first == second == third
    assert first["sum"] == pytest.approx([6, 0.3])
    assert first["exchange"] == [[0, 2**52 + 1], [1, 2**52 + 1], [2, 2**52 + 1]]
    assert first["share"] == {"from": 0}
    assert first["gather"] == ["rank 0", "rank 1", "rank 2"]
    assert first["largest"] == 0


def test_a_single_process_talks_to_itself():
    group = current_group()
    assert type(group) is ProcessGroup
    assert group.is_first and group.size == 1
    assert group.sum_(torch.ones(2)).tolist() == [1, 1]
    assert group.exchange([3]) == [[3]]
    assert group.share_json("a") == "a" and group.gather_json("a") == ["a"]
    group.check_equal("adapters", "a")


def test_different_digests_end_all_processes():
    with pytest.raises(RankError, match=r"different adapters: 2 of 2 differ") as error:
        run_ranks(2, _differ)
    assert IntegrityError.__name__ in str(error.value)
