"""First half of a decoder layer: x + output(attention(query(n), key(n), value(n))), where n is the RMS norm of x."""

from dataclasses import dataclass
from typing import Any

import torch

from lora_chat.training.fast_path.attention.backends import AttentionLayout, attention_backward, attention_forward
from lora_chat.training.fast_path.attention.cpu import HeadConfig
from lora_chat.training.fast_path.layers.lora_group import LoraGroup, SavedLora
from lora_chat.training.fast_path.layers.qk_norm import QKNorm
from lora_chat.training.fast_path.layers.rms_norm import rms_norm, rms_norm_backward, rms_norm_from_mean_squares


def apply_rotary_in_place(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate states (tokens, heads, size) by cos and sin (tokens, 1, size / 2); -sin rotates them back."""
    half = states.shape[-1] // 2
    first, second = states[..., :half], states[..., half:]
    rotated = (first * cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(rotated)


@dataclass(frozen=True)
class AttentionBlockSpec:
    """The parts of an attention block that are the same in every micro-batch."""

    epsilon: float
    heads: HeadConfig
    norms: QKNorm | None
    qkv_proj: LoraGroup
    o_proj: LoraGroup


class AttentionBlockFunction(torch.autograd.Function):
    """Attention block: x (tokens, size), cos and sin (tokens, 1, head size / 2) -> (tokens, size).

    With `recompute` it saves only x, and computes all but the output projection again for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        norm: torch.Tensor,
        attention: AttentionBlockSpec,
        layout: AttentionLayout,
        recompute: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        """Return the output; `parameters` are listed so that autograd asks for their gradients."""
        normed, mean_squares = rms_norm(x, norm, attention.epsilon)
        attn_out, qkv_saved, saved = _project_and_attend(normed, cos, sin, attention, layout)
        y, o_proj_saved = attention.o_proj.forward(attn_out, residual=x)
        saved_tensors = (
            () if recompute else (mean_squares, attn_out, *qkv_saved.tensors(), *o_proj_saved.tensors(), *saved)
        )
        ctx.save_for_backward(x, cos, sin, norm, *saved_tensors)
        ctx.layers = attention, layout
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x and of the LoRA parameters."""
        x, cos, sin, norm, *saved_tensors = ctx.saved_tensors
        attention, layout = ctx.layers
        # Restore the tensors of the forward pass, in the order in which it saved them, or compute them again.
        if saved_tensors:
            mean_squares, attn_out = saved_tensors[:2]
            normed = rms_norm_from_mean_squares(x, mean_squares, norm, attention.epsilon)
            qkv_saved, o_proj_saved = SavedLora(*saved_tensors[2:5]), SavedLora(*saved_tensors[5:8])
            saved = saved_tensors[8:]
        else:
            normed, mean_squares = rms_norm(x, norm, attention.epsilon)
            attn_out, qkv_saved, saved = _project_and_attend(normed, cos, sin, attention, layout)
            o_proj_saved = attention.o_proj.compute_saved(attn_out)
        # Gradient through the output projection, attention, and the query, key and value projections.
        grad_attn_out, out_gradients = attention.o_proj.backward(gradients[0], attn_out, o_proj_saved)
        grad_states = _rotary_attention_backward(grad_attn_out, cos, sin, attention, layout, saved)
        grad_normed, in_gradients = attention.qkv_proj.backward(grad_states, normed, qkv_saved)
        # Gradient of x through the norm, plus the residual connection.
        grad_x = rms_norm_backward(grad_normed, x, norm, mean_squares, attention.epsilon, residual=gradients[0])
        return grad_x, None, None, None, None, None, None, *in_gradients, *out_gradients


def _project_and_attend(
    normed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attention: AttentionBlockSpec, layout: AttentionLayout
) -> tuple[torch.Tensor, SavedLora, list[torch.Tensor]]:
    """Return projections and attention (tokens, query heads * size), and the tensors that their gradients need."""
    heads, norms = attention.heads, attention.norms
    projected, qkv_saved = attention.qkv_proj.forward(normed)
    # Query, key and value heads follow each other: (tokens, query + 2 * key heads, size).
    states = projected.view(normed.shape[0], -1, heads.head_dim)
    norm_saved = norms.apply(states, heads) if norms else []
    # Values are not rotated.
    apply_rotary_in_place(states[:, : heads.num_heads + heads.num_kv_heads], cos, sin)
    attn_out, saved = attention_forward(states, heads, layout)
    return attn_out.flatten(1), qkv_saved, [*norm_saved, *saved]


def _rotary_attention_backward(
    grad_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    attention: AttentionBlockSpec,
    layout: AttentionLayout,
    saved: list[torch.Tensor],
) -> torch.Tensor:
    """Return the gradient of the projections (tokens, heads * size), from the gradient of attention's output."""
    heads, norms = attention.heads, attention.norms
    # The first four tensors belong to the query and key norms.
    norm_saved, saved = (saved[:4], saved[4:]) if norms else ([], saved)
    grad_states = attention_backward(grad_out.view(-1, heads.num_heads, heads.head_dim), list(saved), heads, layout)
    # The gradient of a rotation is the opposite rotation.
    apply_rotary_in_place(grad_states[:, : heads.num_heads + heads.num_kv_heads], cos, -sin)
    if norms:
        norms.apply_backward(grad_states, heads, norm_saved)
    return grad_states.flatten(1)
