"""Noise on the embeddings in training (NEFTune, arXiv 2310.05914).

Transformers' own hook divides by the length of the row that the model gets, which is that of a whole packed batch, so
the noise would shrink with the size of the micro-batch. This hook divides by the length of each dialogue.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel


class EmbeddingNoise:
    """The noise of one training; its values come from PyTorch's random state, which a checkpoint contains."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._lengths: torch.Tensor | None = None

    def set_lengths(self, batch: Mapping[str, Any]) -> None:
        """Set the lengths of the dialogues that the next forward pass computes."""
        if "packed_cu_seqlens" in batch:
            lengths = torch.tensor(batch["packed_cu_seqlens"]).diff()
            self._lengths = lengths.repeat_interleave(lengths)[None]
        else:
            self._lengths = batch["attention_mask"].sum(1, keepdim=True)

    @contextmanager
    def added_to(self, model: "PeftModel") -> Iterator[None]:
        """Add the noise to the output of the model's input embeddings in training mode until the block ends."""
        handle = model.get_base_model().get_input_embeddings().register_forward_hook(self._add_noise)
        try:
            yield
        finally:
            handle.remove()

    def _add_noise(self, module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        """Return embeddings (rows, tokens, size) with uniform noise; in evaluation they stay the same."""
        if not module.training or self._lengths is None:
            return output
        scale = self._alpha / (self._lengths.to(output.device, torch.float32) * output.shape[-1]).sqrt()
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + noise * scale[..., None].to(output.dtype)
