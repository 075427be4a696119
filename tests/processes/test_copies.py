"""Tensors of the first process arrive in the others bit by bit."""

import pytest
import torch
from ranks import run_ranks

from lora_chat.processes.copies import copy_from_first
from lora_chat.processes.group import ProcessGroup, current_group

pytestmark = pytest.mark.slow  # imports libraries in a server of processes

VALUES = torch.tensor([[-0.0, 1e-42, float("nan")], [float("-inf"), 1 / 3, -1.0]])


def _copy() -> list[list[int]]:
    index = current_group().rank.index
    tensors = [
        VALUES.clone() if index == 0 else torch.full((2, 3), 0.5 * index),
        torch.tensor([2.0**-20 * (1 + index)]),
    ]
    tensors.append(torch.nn.Parameter(tensors[0].to(torch.bfloat16)))
    copy_from_first(tensors, current_group())
    return [tensor.detach().view(torch.uint8).flatten().tolist() for tensor in tensors]


def test_copies_have_the_bits_of_the_first_process():
    first, second, third = run_ranks(3, _copy)
    assert first[0] == VALUES.view(torch.uint8).flatten().tolist()
    assert first == second == third


def test_a_process_by_itself_copies_nothing():
    values = VALUES.clone()
    copy_from_first([values], ProcessGroup())
    assert values.view(torch.uint8).equal(VALUES.view(torch.uint8))
