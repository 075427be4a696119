"""RMS norm of every query and key head (Qwen3), in place."""

from dataclasses import dataclass

import torch

from lora_chat.training.fast_path.attention.cpu import Heads
from lora_chat.training.fast_path.layers.rms_norm import rms_norm, rms_norm_gradient


@dataclass(frozen=True)
class HeadNorms:
    """The frozen weights (size,) of the query and of the key norm."""

    query: torch.Tensor
    key: torch.Tensor
    epsilon: float

    def apply(self, states: torch.Tensor, heads: Heads) -> list[torch.Tensor]:
        """Norm the query and key heads of states (tokens, heads, size); what `gradient` needs."""
        kept: list[torch.Tensor] = []
        for part, weight in self._parts(states, heads):
            before = part.reshape(-1, part.shape[-1])
            normed, squares = rms_norm(before, weight, self.epsilon)
            # A reshape of one token is a view, which the next line would write over.
            kept += [before.clone() if before.data_ptr() == part.data_ptr() else before, squares]
            part.copy_(normed.view_as(part))
        return kept

    def gradient(self, to_states: torch.Tensor, heads: Heads, kept: list[torch.Tensor]) -> None:
        """Turn the gradient of the normed heads into that of the heads before, in place."""
        for number, (part, weight) in enumerate(self._parts(to_states, heads)):
            before, squares = kept[2 * number : 2 * number + 2]
            above = part.reshape(-1, part.shape[-1])
            part.copy_(rms_norm_gradient(above, before, weight, squares, self.epsilon).view_as(part))

    def _parts(self, states: torch.Tensor, heads: Heads) -> list[tuple[torch.Tensor, torch.Tensor]]:
        both = heads.query + heads.key
        return [(states[:, : heads.query], self.query), (states[:, heads.query : both], self.key)]
