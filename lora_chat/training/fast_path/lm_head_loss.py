"""The LM head on supervised positions alone, its gradient made in the forward pass: two products, not three.

As in Liger's fused cross entropy (arXiv 2410.10989), but rows without a label were left out before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lora_chat.config.limits import LM_HEAD_CPU_BUFFER_ROWS, LM_HEAD_GPU_BUFFER_LOGITS
from lora_chat.models.architectures import LOGIT_SCALING_FIELDS


class LMHeadLoss(torch.autograd.Function):
    """hidden (positions, size), weight (vocabulary, size), next ids (positions,) -> summed cross entropy / count.

    `buffers` are where its logits are made, some rows at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        count: "int | torch.Tensor",
        buffers: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        gradient = torch.empty_like(hidden)
        loss = hidden.new_zeros((), dtype=torch.float32)
        rows_per_buffer = buffers[0].shape[0]
        for begin in range(0, hidden.shape[0], rows_per_buffer):
            rows = slice(begin, min(begin + rows_per_buffer, hidden.shape[0]))
            logits, logits_fp32, log_probs = (buffer[: rows.stop - begin] for buffer in buffers)
            targets = ids[rows].unsqueeze(1)
            torch.mm(hidden[rows].to(weight.dtype), weight.T, out=logits)
            torch.log_softmax(logits_fp32.copy_(logits), dim=-1, out=log_probs)
            loss -= log_probs.gather(1, targets).sum()
            # The gradient of the logits is softmax - 1 at the target.
            log_probs.exp_().scatter_add_(1, targets, log_probs.new_full(targets.shape, -1.0))
            gradient[rows] = logits.copy_(log_probs) @ weight
        ctx.save_for_backward(gradient.div_(count))
        return loss / count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None


def allocate_logit_buffers(weight: torch.Tensor, rows: int) -> list[torch.Tensor]:
    """Room for the logits of so many positions in the weight's type, and twice in fp32, each (rows, vocabulary)."""
    return [weight.new_empty(rows, weight.shape[0], dtype=kind) for kind in (weight.dtype, *2 * [torch.float32])]


@dataclass(frozen=True)
class SupervisedLMHead:
    """A causal model in two parts: the decoder, called for hidden states, and the head's frozen weight."""

    decoder: torch.nn.Module
    weight: torch.Tensor

    def loss(self, inputs: dict[str, Any], count: "int | torch.Tensor") -> torch.Tensor:
        """Summed cross entropy of a flat micro-batch over its supervised tokens, divided by `count`."""
        positions, ids, rest = split_supervised(inputs)
        hidden = self.decoder(**rest, use_cache=False).last_hidden_state[0]
        loss: torch.Tensor = LMHeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden.index_select(0, positions), self.weight, ids, count, self._logit_buffers(len(ids))
        )
        return loss

    def _logit_buffers(self, positions: int) -> list[torch.Tensor]:
        if self.weight.device.type == "cpu":
            return self._cached_logit_buffers
        return allocate_logit_buffers(
            self.weight, min(positions, max(LM_HEAD_CPU_BUFFER_ROWS, LM_HEAD_GPU_BUFFER_LOGITS // self.weight.shape[0]))
        )

    @cached_property
    def _cached_logit_buffers(self) -> list[torch.Tensor]:
        """For all steps, on a CPU: where such large ones come and go, what lies in their place makes them grow."""
        return allocate_logit_buffers(self.weight, LM_HEAD_CPU_BUFFER_ROWS)


def split_supervised(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """A flat micro-batch -> positions before a trained token, that token's ids, and the model's inputs."""
    positions = inputs["supervised"]
    ids = inputs["labels"][0].index_select(0, positions + 1)
    return positions, ids, {key: value for key, value in inputs.items() if key not in ("labels", "supervised")}


def find_lm_head(model: Any) -> SupervisedLMHead | None:
    """The parts of a PEFT model whose logits are `head(hidden)` and nothing more; None for any other."""
    base: Any = model.get_base_model()
    head: Any = base.get_output_embeddings()
    config = base.config.get_text_config()
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in LOGIT_SCALING_FIELDS)
    routed = bool(getattr(config, "output_router_logits", False))
    plain = bool(
        type(head) is torch.nn.Linear and getattr(head, "bias", None) is None and not head.weight.requires_grad
    )
    decoder: Any = getattr(base, base.base_model_prefix, None)
    covered = plain and not scaled and not routed and decoder is not None
    return SupervisedLMHead(decoder, head.weight) if covered else None
