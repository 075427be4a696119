"""The first half of a decoder layer: x + output(attention(query(n), key(n), value(n))), n = RMS norm of x."""

from typing import Any

import torch

from lora_chat.training.fused.head_norms import HeadNorms
from lora_chat.training.fused.lora_group import LoraGroup, Trained
from lora_chat.training.fused.rms_norm import rms_norm, rms_norm_again, rms_norm_gradient
from lora_chat.training.fused.rotary import rotate
from lora_chat.training.head_rows import HeadRows
from lora_chat.training.segment_attention import Heads, attend, attend_gradient


class AttentionHalf(torch.autograd.Function):
    """x (tokens, size) -> the same; cos and sin (tokens, 1, head size / 2)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        norm: torch.Tensor,
        epsilon: float,
        heads: Heads,
        norms: HeadNorms | None,
        rows: HeadRows,
        projections: LoraGroup,
        output: LoraGroup,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        normed, scale = rms_norm(x, norm, epsilon)
        flat, trained_in = projections.forward(normed)
        states = flat.view(x.shape[0], -1, heads.size)
        raw = norms.apply(states, heads) if norms else []
        rotate(states[:, : heads.query + heads.key], cos, sin)
        attended, kept = attend(states, heads, rows)
        mixed = attended.view(x.shape[0], -1)
        y, trained_out = output.forward(mixed, plus=x)
        ctx.save_for_backward(
            x, cos, sin, norm, scale, mixed, *trained_in.tensors(), *trained_out.tensors(), *raw, *kept
        )
        ctx.layers = epsilon, heads, norms, rows, projections, output
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, cos, sin, norm, scale, mixed, *rest = ctx.saved_tensors
        epsilon, heads, norms, rows, projections, output = ctx.layers
        raw, kept = (rest[6:10], rest[10:]) if norms else ([], rest[6:])
        to_mixed, out_gradients = output.backward(gradients[0], mixed, Trained(*rest[3:6]))
        above = to_mixed.view(x.shape[0], heads.query, heads.size)
        to_states = attend_gradient(above, kept, heads, rows)
        rotate(to_states[:, : heads.query + heads.key], cos, -sin)
        if norms:
            norms.gradient(to_states, heads, raw)
        normed = rms_norm_again(x, scale, norm, epsilon)
        to_normed, in_gradients = projections.backward(to_states.flatten(1), normed, Trained(*rest[:3]))
        to_x = rms_norm_gradient(to_normed, x, norm, scale, plus=gradients[0])
        return to_x, None, None, None, None, None, None, None, None, None, *in_gradients, *out_gradients
