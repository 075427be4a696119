"""RMS norm of every query and key head (Qwen3), in place."""

from dataclasses import dataclass

import torch

from lora_chat.training.fast_path.attention.cpu import HeadConfig
from lora_chat.training.fast_path.layers.rms_norm import rms_norm, rms_norm_backward


@dataclass(frozen=True)
class QKNorm:
    """The frozen weights (size,) of the query norm and of the key norm."""

    query_weight: torch.Tensor
    key_weight: torch.Tensor
    epsilon: float

    def apply(self, states: torch.Tensor, heads: HeadConfig) -> list[torch.Tensor]:
        """Norm the query and key heads of states (tokens, heads, size) in place. Return what the gradient needs."""
        saved: list[torch.Tensor] = []
        for part, weight in self._query_and_key(states, heads):
            before = part.reshape(-1, part.shape[-1])
            normed, mean_squares = rms_norm(before, weight, self.epsilon)
            # A reshape of one token is a view, which the copy below would overwrite.
            saved += [before.clone() if before.data_ptr() == part.data_ptr() else before, mean_squares]
            part.copy_(normed.view_as(part))
        return saved

    def apply_backward(self, grad_states: torch.Tensor, heads: HeadConfig, saved: list[torch.Tensor]) -> None:
        """Replace the gradient of the normed heads by the gradient of the heads before the norm, in place."""
        for number, (part, weight) in enumerate(self._query_and_key(grad_states, heads)):
            before, mean_squares = saved[2 * number : 2 * number + 2]
            grad_out = part.reshape(-1, part.shape[-1])
            part.copy_(rms_norm_backward(grad_out, before, weight, mean_squares, self.epsilon).view_as(part))

    def _query_and_key(self, states: torch.Tensor, heads: HeadConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return views of the query heads and of the key heads, each with its weight."""
        end_of_keys = heads.num_heads + heads.num_kv_heads
        return [
            (states[:, : heads.num_heads], self.query_weight),
            (states[:, heads.num_heads : end_of_keys], self.key_weight),
        ]
