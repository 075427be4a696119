"""The sum of the gradients of two processes: exact counts, missing gradients and other types of weights."""

import pytest
import torch

from lora_chat.errors import IntegrityError
from lora_chat.processes.group import ProcessGroup
from lora_chat.processes.rank import Rank
from lora_chat.training.gradient_sum import GradientSum


class Pair(ProcessGroup):
    """The first of two processes; the second gives `other`, or the same."""

    rank = Rank(0, 2)
    other: torch.Tensor | None = None

    def sum_(self, tensor):
        self.sent = tensor.clone()
        return tensor.add_(self.sent if self.other is None else self.other)


def make_weights(gradients):
    weights = [torch.nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = None if gradient is None else torch.full_like(weight, gradient)
    return weights


def add(weights, own_tokens, step_tokens, other=None):
    group = Pair()
    group.other = other
    return group, GradientSum(group).sum_(weights, torch.tensor(1.5), own_tokens, step_tokens)


@pytest.mark.parametrize("own_tokens", [0, 4095, 16_777_217, 4_000_000_003])
def test_counts_are_exact(own_tokens):
    weights = make_weights((1.0, 2.0))
    assert add(weights, own_tokens, 2 * own_tokens)[1] == 3.0
    assert [weight.grad.tolist() for weight in weights] == [[2.0, 2.0], [4.0, 4.0]]
    assert [weight.grad.dtype for weight in weights] == [torch.float32, torch.bfloat16]
    with pytest.raises(IntegrityError, match=f"{2 * own_tokens} supervised tokens in a step of {2 * own_tokens + 1}"):
        add(make_weights((1.0, 2.0)), own_tokens, 2 * own_tokens + 1)


def test_a_gradient_of_one_process_is_that_of_all_and_none_stays_none():
    """An optimizer leaves a weight without gradient as it is, and shrinks one with a gradient of zero."""
    other = add(make_weights((1.0, None)), 3, 6)[0].sent
    weights = make_weights((None, None))
    add(weights, 0, 3, other)
    assert weights[0].grad.tolist() == [1.0, 1.0]
    assert weights[1].grad is None


def test_a_non_finite_gradient_of_one_process_is_that_of_all():
    other = add(make_weights((float("nan"), 1.0)), 3, 6)[0].sent
    weights = make_weights((1.0, 1.0))
    add(weights, 3, 6, other)
    assert weights[0].grad.isnan().all()
    assert weights[1].grad.tolist() == [2.0, 2.0]
