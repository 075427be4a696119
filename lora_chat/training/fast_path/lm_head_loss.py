"""Cross entropy of the LM head on supervised positions, with its gradient computed in the forward pass.

This takes two matrix products instead of three, as in Liger's fused cross entropy (arXiv 2410.10989). Rows without a
label are left out before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from lora_chat.config.limits import LM_HEAD_CPU_BUFFER_ROWS, LM_HEAD_GPU_BUFFER_LOGITS
from lora_chat.models.architectures import LOGIT_SCALING_FIELDS

if TYPE_CHECKING:
    from peft import PeftModel


class LMHeadLoss(torch.autograd.Function):
    """Loss: hidden (positions, size), weight (vocabulary, size), next ids (positions,) -> cross entropy / count.

    The logits are computed in `buffers`, some rows at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        count: "float | torch.Tensor",
        buffers: Sequence[torch.Tensor],
        smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Return the loss, and save the gradient of the hidden states."""
        gradient = torch.empty_like(hidden)
        loss = hidden.new_zeros((), dtype=torch.float32)
        rows_per_buffer = buffers[0].shape[0]
        for begin in range(0, hidden.shape[0], rows_per_buffer):
            rows = slice(begin, min(begin + rows_per_buffer, hidden.shape[0]))
            logits, logits_fp32, log_probs = (buffer[: rows.stop - begin] for buffer in buffers)
            targets = ids[rows].unsqueeze(1)
            # Logits in the weight's type, then log probabilities in fp32.
            torch.mm(hidden[rows].to(weight.dtype), weight.T, out=logits)
            torch.log_softmax(logits_fp32.copy_(logits), dim=-1, out=log_probs)
            loss -= (1 - smoothing) * log_probs.gather(1, targets).sum()
            if smoothing:
                # Each word of the vocabulary is a target with an equal part of `smoothing`.
                loss -= smoothing / weight.shape[0] * log_probs.sum()
            # The gradient of the logits is softmax - 1 at the target.
            log_probs.exp_().scatter_add_(1, targets, log_probs.new_full(targets.shape, smoothing - 1.0))
            if smoothing:
                log_probs -= smoothing / weight.shape[0]
            gradient[rows] = logits.copy_(log_probs) @ weight
        ctx.save_for_backward(gradient.div_(count))
        return loss / count

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the hidden states; the weight is frozen."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None, None


def allocate_logit_buffers(weight: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """Allocate buffers (rows, vocabulary) for logits: one in the weight's type and two in fp32."""
    return [weight.new_empty(rows, weight.shape[0], dtype=kind) for kind in (weight.dtype, *2 * [torch.float32])]


@dataclass(frozen=True)
class SupervisedLMHead:
    """A causal model in two parts: the decoder, which returns hidden states, and the frozen weight of the head."""

    decoder: torch.nn.Module
    weight: torch.Tensor

    def loss(self, inputs: Mapping[str, Any], count: "float | torch.Tensor", smoothing: float = 0.0) -> torch.Tensor:
        """Return the summed cross entropy of a packed batch's supervised tokens, divided by `count`."""
        positions, ids, rest = split_supervised(inputs)
        hidden = self.decoder(**rest, use_cache=False).last_hidden_state[0]
        loss: torch.Tensor = LMHeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden.index_select(0, positions), self.weight, ids, count, self._logit_buffers(len(ids)), smoothing
        )
        return loss

    def score_tokens(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross entropy of each supervised token of a packed batch, and whether it is the most likely one.

        Both are (supervised,); there is no gradient.
        """
        positions, ids, rest = split_supervised(inputs)
        hidden = self.decoder(**rest, use_cache=False).last_hidden_state[0].index_select(0, positions)
        losses, hits = torch.empty(len(ids), device=ids.device), torch.empty_like(ids, dtype=torch.bool)
        buffers = self._logit_buffers(len(ids))
        for begin in range(0, len(ids), buffers[0].shape[0]):
            rows = slice(begin, min(begin + buffers[0].shape[0], len(ids)))
            logits, logits_fp32, log_probs = (buffer[: rows.stop - begin] for buffer in buffers)
            torch.mm(hidden[rows].to(self.weight.dtype), self.weight.T, out=logits)
            torch.log_softmax(logits_fp32.copy_(logits), dim=-1, out=log_probs)
            losses[rows] = -log_probs.gather(1, ids[rows, None]).squeeze(1)
            hits[rows] = log_probs.argmax(-1) == ids[rows]
        return losses, hits

    def _logit_buffers(self, positions: int) -> list[torch.Tensor]:
        """Return the buffers for a batch. A GPU needs more rows at a time to be busy."""
        if self.weight.device.type == "cpu":
            return self._cached_logit_buffers
        return allocate_logit_buffers(
            self.weight, min(positions, max(LM_HEAD_CPU_BUFFER_ROWS, LM_HEAD_GPU_BUFFER_LOGITS // self.weight.shape[0]))
        )

    @cached_property
    def _cached_logit_buffers(self) -> list[torch.Tensor]:
        """Return the buffers of all steps on a CPU, because allocating them again for each step grows the heap."""
        return allocate_logit_buffers(self.weight, LM_HEAD_CPU_BUFFER_ROWS)


def sum_cross_entropy(logits: torch.Tensor, ids: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the summed cross entropy of logits (positions, vocabulary); ids of -100 do not count."""
    return torch.nn.functional.cross_entropy(logits.float(), ids, reduction="sum", label_smoothing=smoothing)


def split_supervised(inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Split a packed batch into positions before a trained token, the ids of that token, and the model's inputs."""
    positions = inputs["supervised"]
    ids = inputs["labels"][0].index_select(0, positions + 1)
    return positions, ids, {key: value for key, value in inputs.items() if key not in ("labels", "supervised")}


def find_lm_head(model: "PeftModel") -> SupervisedLMHead | None:
    """Return the two parts of a PEFT model whose logits are exactly `head(hidden)`, or None for any other model."""
    base = model.get_base_model()
    head = base.get_output_embeddings()
    config = base.config.get_text_config()
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in LOGIT_SCALING_FIELDS)
    routed = bool(getattr(config, "output_router_logits", False))
    plain = bool(
        type(head) is torch.nn.Linear and getattr(head, "bias", None) is None and not head.weight.requires_grad
    )
    decoder = getattr(base, base.base_model_prefix, None)
    if decoder is None or not plain or scaled or routed:
        return None
    return SupervisedLMHead(decoder, head.weight)
