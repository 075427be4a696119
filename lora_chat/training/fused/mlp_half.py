"""The second half of a decoder layer: x + down(silu(gate(n)) * up(n)), n = RMS norm of x."""

from typing import Any

import torch
from torch.nn.functional import silu

from lora_chat.training.fused.lora_group import LoraGroup, Trained
from lora_chat.training.fused.rms_norm import rms_norm, rms_norm_again, rms_norm_gradient


class MlpHalf(torch.autograd.Function):
    """x (tokens, size) -> the same; keeps x, gate and up (size + 2 * width a token) for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm: torch.Tensor,
        epsilon: float,
        gate_up: LoraGroup,
        down: LoraGroup,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        normed, scale = rms_norm(x, norm, epsilon)
        both, trained_up = gate_up.forward(normed)
        gate, up = both.chunk(2, dim=1)
        y, trained_down = down.forward(silu(gate).mul_(up), plus=x)
        ctx.save_for_backward(x, norm, scale, both, *trained_up.tensors(), *trained_down.tensors())
        ctx.layers = epsilon, gate_up, down
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, norm, scale, both, *trained = ctx.saved_tensors
        epsilon, gate_up, down = ctx.layers
        gate, up = both.chunk(2, dim=1)
        active = silu(gate)
        to_product, down_gradients = down.backward(gradients[0], active * up, Trained(*trained[3:]))
        to_both = torch.empty_like(both)
        to_gate, to_up = to_both.chunk(2, dim=1)
        torch.mul(to_product, active, out=to_up)
        torch.ops.aten.silu_backward.grad_input(to_product.mul_(up), gate, grad_input=to_gate)
        normed = rms_norm_again(x, scale, norm, epsilon)
        to_normed, up_gradients = gate_up.backward(to_both, normed, Trained(*trained[:3]))
        to_x = rms_norm_gradient(to_normed, x, norm, scale, plus=gradients[0])
        return to_x, None, None, None, None, *up_gradients, *down_gradients
