"""SFTTrainer that takes an optimizer step's micro-batches as they were packed, and counts what it trained."""

from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from lora_chat.training.supervised_head import SupervisedHead, split_supervised

_MOST_POSITIONS = 2048
"""Logits of (positions, vocabulary) are held at once; beyond this TRL's chunked head takes over."""


class StepTrainer(SFTTrainer):
    """The loss of a step is the summed cross entropy of its supervised tokens, divided by their number."""

    head: SupervisedHead | None = None
    """Set where the model's head is covered; else the model's own forward makes the logits."""
    supervised_tokens: int = 0
    """Trained so far."""
    last_loss: Any = 0.0
    """Of the micro-batches of the last step, or of its last one."""
    last_rows: Sequence[Sequence[int]] = ()
    """The ids of the last step's dialogues."""

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of every micro-batch; the summed loss, detached."""
        count = _count(inputs)
        self.supervised_tokens = self.supervised_tokens + count
        if "micro_batches" not in inputs:
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
            return loss
        model.train()
        whole = self._prepare_inputs(inputs)
        total = torch.zeros((), device=self.args.device)
        for micro_batch in whole["micro_batches"]:
            with self.compute_loss_context_manager():
                loss = self._flat_loss(model, micro_batch, count)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter alone: tokenizer and base are known by digest, and arguments would be pickled."""
        self.model.save_pretrained(output_dir, safe_serialization=True, save_embedding_layers=False)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss of a validation batch."""
        if "micro_batches" not in inputs:
            result: tuple[torch.Tensor | None, ...] = super().prediction_step(model, inputs, *args, **kwargs)
            return result  # type: ignore[return-value]
        whole = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            count = _count(whole)
            losses = [self._flat_loss(model, micro_batch, count) for micro_batch in whole["micro_batches"]]
        return torch.stack(losses).sum(), None, None

    def _flat_loss(self, model: torch.nn.Module, inputs: dict[str, Any], count: "int | torch.Tensor") -> torch.Tensor:
        if self.head is not None:
            with self.accelerator.autocast():
                return self.head.loss(inputs, count)
        keep, ids, rest = split_supervised(inputs)
        if keep.numel() > _MOST_POSITIONS or self.aux_loss_enabled:
            known = rest | {"labels": inputs["labels"]}
            loss: torch.Tensor = self.compute_loss(model, known, num_items_in_batch=count)
            return loss
        logits = model(**rest, logits_to_keep=keep, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[0].float(), ids, reduction="sum") / count


def _count(inputs: dict[str, Any]) -> Any:
    """Supervised tokens: a label is that of the token before it, so a row's first never counts."""
    rows = inputs.get("micro_batches", [inputs])
    return sum((row["labels"][:, 1:] != -100).sum() for row in rows)
