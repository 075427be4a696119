"""Second half of a decoder layer: x + down(silu(gate(n)) * up(n)), where n is the RMS norm of x."""

from typing import Any

import torch
from torch.nn.functional import silu

from lora_chat.training.fast_path.layers.lora_group import LoraGroup, SavedLora
from lora_chat.training.fast_path.layers.rms_norm import rms_norm, rms_norm_backward, rms_norm_from_mean_squares


class MlpBlockFunction(torch.autograd.Function):
    """MLP block: x (tokens, size) -> (tokens, size). It saves x, gate and up (size + 2 * width per token).

    With `recompute` it saves only x, and computes gate and up, but not down, again for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        norm: torch.Tensor,
        epsilon: float,
        gate_up: LoraGroup,
        down: LoraGroup,
        recompute: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        """Return the output; `parameters` are listed so that autograd asks for their gradients."""
        normed, mean_squares = rms_norm(x, norm, epsilon)
        gate_and_up, gate_up_saved = gate_up.forward(normed)
        gate, up = gate_and_up.chunk(2, dim=1)
        y, down_saved = down.forward(silu(gate).mul_(up), residual=x)
        saved = () if recompute else (mean_squares, gate_and_up, *gate_up_saved.tensors(), *down_saved.tensors())
        ctx.save_for_backward(x, norm, *saved)
        ctx.layers = epsilon, gate_up, down
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x and of the LoRA parameters."""
        x, norm, *saved = ctx.saved_tensors
        epsilon, gate_up, down = ctx.layers
        # The norm is cheap, so it is always computed again; gate and up only if they were not saved.
        if saved:
            mean_squares, gate_and_up = saved[:2]
            normed, gate_up_saved = rms_norm_from_mean_squares(x, mean_squares, norm, epsilon), SavedLora(*saved[2:5])
        else:
            normed, mean_squares = rms_norm(x, norm, epsilon)
            gate_and_up, gate_up_saved = gate_up.forward(normed)
        gate, up = gate_and_up.chunk(2, dim=1)
        activated_gate = silu(gate)
        hidden = activated_gate * up
        # Gradient of the product silu(gate) * up, through the down projection.
        down_saved = SavedLora(*saved[5:]) if saved else down.compute_saved(hidden)
        grad_hidden, down_gradients = down.backward(gradients[0], hidden, down_saved)
        # Gradients of gate and up, written side by side into one tensor as the group expects them.
        grad_gate_and_up = torch.empty_like(gate_and_up)
        grad_gate, grad_up = grad_gate_and_up.chunk(2, dim=1)
        torch.mul(grad_hidden, activated_gate, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_hidden.mul_(up), gate, grad_input=grad_gate)
        # Gradient of x through the projections and the norm, plus the residual connection.
        grad_normed, up_gradients = gate_up.backward(grad_gate_and_up, normed, gate_up_saved)
        grad_x = rms_norm_backward(grad_normed, x, norm, mean_squares, epsilon, residual=gradients[0])
        return grad_x, None, None, None, None, None, *up_gradients, *down_gradients
