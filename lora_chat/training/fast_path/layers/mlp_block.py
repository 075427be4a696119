"""The second half of a decoder layer: x + down(silu(gate(n)) * up(n)), n = RMS norm of x."""

from typing import Any

import torch
from torch.nn.functional import silu

from lora_chat.training.fast_path.layers.lora_group import LoraGroup, Trained
from lora_chat.training.fast_path.layers.rms_norm import rms_norm, rms_norm_again, rms_norm_gradient


class MlpHalf(torch.autograd.Function):
    """x (tokens, size) -> the same; keeps x, gate and up (size + 2 * width a token) for the gradient.

    With `again` it keeps x alone and computes gate and up, but not down, a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm: torch.Tensor,
        epsilon: float,
        gate_up: LoraGroup,
        down: LoraGroup,
        again: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        normed, squares = rms_norm(x, norm, epsilon)
        both, trained_up = gate_up.forward(normed)
        gate, up = both.chunk(2, dim=1)
        y, trained_down = down.forward(silu(gate).mul_(up), plus=x)
        kept = () if again else (squares, both, *trained_up.tensors(), *trained_down.tensors())
        ctx.save_for_backward(x, norm, *kept)
        ctx.layers = epsilon, gate_up, down
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, norm, *kept = ctx.saved_tensors
        epsilon, gate_up, down = ctx.layers
        if kept:
            squares, both = kept[:2]
            normed, trained_up = rms_norm_again(x, squares, norm, epsilon), Trained(*kept[2:5])
        else:
            normed, squares = rms_norm(x, norm, epsilon)
            both, trained_up = gate_up.forward(normed)
        gate, up = both.chunk(2, dim=1)
        active = silu(gate)
        mixed = active * up
        trained_down = Trained(*kept[5:]) if kept else down.inner(mixed)
        to_mixed, down_gradients = down.backward(gradients[0], mixed, trained_down)
        to_both = torch.empty_like(both)
        to_gate, to_up = to_both.chunk(2, dim=1)
        torch.mul(to_mixed, active, out=to_up)
        torch.ops.aten.silu_backward.grad_input(to_mixed.mul_(up), gate, grad_input=to_gate)
        to_normed, up_gradients = gate_up.backward(to_both, normed, trained_up)
        to_x = rms_norm_gradient(to_normed, x, norm, squares, epsilon, plus=gradients[0])
        return to_x, None, None, None, None, None, *up_gradients, *down_gradients
