"""The first half of a decoder layer: x + output(attention(query(n), key(n), value(n))), n = RMS norm of x."""

from dataclasses import dataclass
from typing import Any

import torch

from lora_chat.training.fast_path.attention.backends import Layout, attend, attend_gradient
from lora_chat.training.fast_path.attention.cpu import Heads
from lora_chat.training.fast_path.layers.lora_group import LoraGroup, Trained
from lora_chat.training.fast_path.layers.qk_norm import HeadNorms
from lora_chat.training.fast_path.layers.rms_norm import rms_norm, rms_norm_again, rms_norm_gradient


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn states (tokens, heads, size) by cos and sin (tokens, 1, size / 2); minus sin turns back."""
    half = states.shape[-1] // 2
    first, second = states[..., :half], states[..., half:]
    turned = (first * cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)


@dataclass(frozen=True)
class Attention:
    """What does not change from one micro-batch to the next."""

    epsilon: float
    heads: Heads
    norms: HeadNorms | None
    projections: LoraGroup
    output: LoraGroup


class AttentionHalf(torch.autograd.Function):
    """x (tokens, size) -> the same; cos and sin (tokens, 1, head size / 2).

    With `again` it keeps x alone and computes all but the output projection a second time for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        norm: torch.Tensor,
        attention: Attention,
        layout: Layout,
        again: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        normed, squares = rms_norm(x, norm, attention.epsilon)
        mixed, trained_in, kept = _mix(normed, cos, sin, attention, layout)
        y, trained_out = attention.output.forward(mixed, plus=x)
        everything = () if again else (squares, mixed, *trained_in.tensors(), *trained_out.tensors(), *kept)
        ctx.save_for_backward(x, cos, sin, norm, *everything)
        ctx.layers = attention, layout
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, cos, sin, norm, *rest = ctx.saved_tensors
        attention, layout = ctx.layers
        if rest:
            squares, mixed = rest[:2]
            normed = rms_norm_again(x, squares, norm, attention.epsilon)
            trained_in, trained_out, kept = Trained(*rest[2:5]), Trained(*rest[5:8]), rest[8:]
        else:
            normed, squares = rms_norm(x, norm, attention.epsilon)
            mixed, trained_in, kept = _mix(normed, cos, sin, attention, layout)
            trained_out = attention.output.inner(mixed)
        to_mixed, out_gradients = attention.output.backward(gradients[0], mixed, trained_out)
        to_states = _mix_gradient(to_mixed, cos, sin, attention, layout, kept)
        to_normed, in_gradients = attention.projections.backward(to_states, normed, trained_in)
        to_x = rms_norm_gradient(to_normed, x, norm, squares, attention.epsilon, plus=gradients[0])
        return to_x, None, None, None, None, None, None, *in_gradients, *out_gradients


def _mix(
    normed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attention: Attention, layout: Layout
) -> tuple[torch.Tensor, Trained, list[torch.Tensor]]:
    """Projections and attention: (tokens, query heads * size), and what their gradients need."""
    heads, norms = attention.heads, attention.norms
    flat, trained = attention.projections.forward(normed)
    states = flat.view(normed.shape[0], -1, heads.size)
    raw = norms.apply(states, heads) if norms else []
    rotate(states[:, : heads.query + heads.key], cos, sin)
    attended, kept = attend(states, heads, layout)
    return attended.flatten(1), trained, [*raw, *kept]


def _mix_gradient(
    above: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    attention: Attention,
    layout: Layout,
    kept: list[torch.Tensor],
) -> torch.Tensor:
    heads, norms = attention.heads, attention.norms
    raw, kept = (kept[:4], kept[4:]) if norms else ([], kept)
    to_states = attend_gradient(above.view(-1, heads.query, heads.size), list(kept), heads, layout)
    rotate(to_states[:, : heads.query + heads.key], cos, -sin)
    if norms:
        norms.gradient(to_states, heads, raw)
    return to_states.flatten(1)
