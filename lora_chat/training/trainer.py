"""SFTTrainer that takes an optimizer step's micro-batches as they were packed, and remembers what it trained."""

from pathlib import Path
from typing import Any

import torch
from trl import SFTTrainer

from lora_chat.models.adapter import write_peft_adapter
from lora_chat.training.fast_path.lm_head_loss import SupervisedLMHead, split_supervised

_MAX_LOGIT_POSITIONS = 2048
"""Logits of (positions, vocabulary) are held at once; beyond this TRL's chunked head takes over."""


class EvaluationStopped(Exception):
    """A signal came while the validation loss was measured."""


class TrainingAlreadyComplete(Exception):
    """The checkpoint that is continued has done every step already."""


class PackedSFTTrainer(SFTTrainer):
    """The loss of a step is the summed cross entropy of its supervised tokens, divided by their number."""

    head: SupervisedLMHead | None = None
    """Set where the model's head is covered; else the model's own forward makes the logits."""
    supervised_tokens: Any = 0
    """Trained so far."""
    step_loss: Any = 0.0
    step_tokens: Any = 0
    """Loss and supervised tokens of the optimizer step under way."""
    step_batches: tuple[dict[str, Any], ...] = ()
    """What it was made of, to be named when it goes wrong."""

    def begin_step(self) -> None:
        """Forget the last optimizer step."""
        self.step_loss, self.step_tokens, self.step_batches = 0.0, 0, ()

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of every micro-batch; the summed loss, detached."""
        count = _count_supervised_tokens(inputs)
        self.supervised_tokens = self.supervised_tokens + count
        self.step_tokens = self.step_tokens + count
        self.step_batches = (*self.step_batches, dict(inputs))
        loss = self._run_micro_batches(model, inputs, count, *args, **kwargs)
        self.step_loss = self.step_loss + loss
        return loss

    def _run_micro_batches(
        self, model: torch.nn.Module, inputs: dict[str, Any], count: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if "micro_batches" not in inputs:
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
            return loss
        model.train()
        prepared = self._prepare_inputs(inputs)
        total = torch.zeros((), device=self.args.device)
        for micro_batch in prepared["micro_batches"]:
            with self.compute_loss_context_manager():
                loss = self._packed_loss(model, micro_batch, count)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter alone: tokenizer and base are known by digest, and arguments would be pickled."""
        assert output_dir is not None
        write_peft_adapter(self.model, Path(output_dir))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint is not handed on."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validation metrics; none if it was stopped, and then it is made up for when the run goes on.

        A data loader draws a random number: it must not change the dropout of the steps to come.
        """
        with torch.random.fork_rng(devices=self._rng_devices()):
            try:
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
            except EvaluationStopped:
                return {}
        return metrics

    def dry_run_step(self, inputs: dict[str, Any]) -> None:
        """Forward and backward as in a step, for their memory alone: figures and dice stay as they are."""
        saved_attributes = dict(vars(self))
        count = _count_supervised_tokens(inputs)
        try:
            with torch.random.fork_rng(devices=self._rng_devices()):
                self._run_micro_batches(self.model, inputs, count, num_items_in_batch=count)
        finally:
            self.__dict__.update(saved_attributes)
            for values in self._metrics.values():  # TRL's, of the first step to be logged
                values.clear()

    def _rng_devices(self) -> list[torch.device]:
        device = self.args.device
        return [device] if device.type == "cuda" else []

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss of a validation batch."""
        if "micro_batches" not in inputs:
            result: tuple[torch.Tensor | None, ...] = super().prediction_step(model, inputs, *args, **kwargs)
            return result  # type: ignore[return-value]
        prepared = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            count = _count_supervised_tokens(prepared)
            losses = [self._packed_loss(model, micro_batch, count) for micro_batch in prepared["micro_batches"]]
        return torch.stack(losses).sum(), None, None

    def _packed_loss(self, model: torch.nn.Module, inputs: dict[str, Any], count: "int | torch.Tensor") -> torch.Tensor:
        if self.head is not None:
            with self.accelerator.autocast():
                return self.head.loss(inputs, count)
        positions, ids, rest = split_supervised(inputs)
        if positions.numel() > _MAX_LOGIT_POSITIONS or self.aux_loss_enabled:
            model_inputs = rest | {"labels": inputs["labels"]}
            loss: torch.Tensor = self.compute_loss(model, model_inputs, num_items_in_batch=count)
            return loss
        logits = model(**rest, logits_to_keep=positions, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[0].float(), ids, reduction="sum") / count


def _count_supervised_tokens(inputs: dict[str, Any]) -> Any:
    """Supervised tokens: a label is that of the token before it, so a row's first never counts."""
    rows = inputs.get("micro_batches", [inputs])
    return sum((row["labels"][:, 1:] != -100).sum() for row in rows)
