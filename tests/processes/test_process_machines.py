"""Processes of one machine need local numbers, unless several agents of torchrun run there."""

import pytest

from lora_chat.errors import UsageError
from lora_chat.processes.connect import _check_machines
from lora_chat.processes.peers import describe_this_process
from lora_chat.processes.rank import Rank


def test_two_processes_of_one_machine_without_local_numbers_are_refused():
    with pytest.raises(UsageError, match=r"2 processes run on .*set LOCAL_RANK and LOCAL_WORLD_SIZE"):
        _check_machines(Rank(1, 2), [describe_this_process()] * 2)


def test_two_agents_of_torchrun_may_share_a_machine():
    _check_machines(Rank(1, 2, is_from_agent=True), [describe_this_process()] * 2)
