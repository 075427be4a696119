"""SFTTrainer that trains on packed micro-batches and records the current optimizer step."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from trl import SFTTrainer

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.encoding.encode import IGNORE_INDEX
from lora_chat.models.adapter import make_lora_plus_optimizer, write_peft_adapter
from lora_chat.models.logits import compute_logits
from lora_chat.processes.group import current_group
from lora_chat.system.activity import note_activity
from lora_chat.training.fast_path.lm_head_loss import SupervisedLMHead, split_supervised, sum_cross_entropy
from lora_chat.training.fast_path.packed_batch import EncodedIds
from lora_chat.training.gradient_sum import GradientSum
from lora_chat.training.lock_step import IDLE_COUNT, LockStep
from lora_chat.training.optimizer_groups import GroupSettings, read_group_settings
from lora_chat.training.row_order import replace_row_list
from lora_chat.training.step_collator import StepBatch, count_supervised_tokens
from lora_chat.training.step_randomness import StepRandomness
from lora_chat.training.stock_path import StockPath
from lora_chat.training.token_scores import TokenScores, concatenate_scores, score_logits

_MAX_LOGIT_POSITIONS = 2048
"""Largest number of positions whose logits are computed together; above it TRL's chunked head is used."""

Batch = dict[str, Any]
"""A padded or packed micro-batch."""


class PackedSFTTrainer(SFTTrainer):
    """SFTTrainer whose loss of a step is the mean cross entropy of the step's supervised tokens."""

    def __init__(
        self,
        *,
        plan: TrainingPlan,
        randomness: StepRandomness,
        lm_head: SupervisedLMHead | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self._plan = plan
        self._gradient_sum = GradientSum(current_group())
        self._randomness = randomness
        self._lock_step = LockStep(self.model, current_group())
        self.group_settings: tuple[GroupSettings, ...] = ()
        """The plan's settings of the optimizer's parameter groups."""
        self._lm_head = lm_head
        """LM head for supervised positions; None if the model's own forward computes the logits."""
        # Some models (Qwen-VL) average the loss of each micro-batch themselves, and TRL's loss does not.
        self.model_accepts_loss_kwargs = True
        self.stock_path = StockPath()
        """How padded batches are computed."""
        self.measure_validation: Callable[[], None] = lambda: None
        """Function that measures the validation set after the current step."""
        self.supervised_tokens = 0
        """Supervised tokens trained so far."""
        self.step_loss: float | torch.Tensor = 0.0
        """Loss of the current optimizer step."""
        self.step_tokens = 0
        """Supervised tokens of the current optimizer step."""
        self.step_batch: StepBatch = {}
        """Batch of the current optimizer step, for error messages."""

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        """Log figures without a non-finite gradient norm, which a skipped step of fp16 has and JSON cannot hold."""
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            logs = {name: value for name, value in logs.items() if name != "grad_norm"}
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with the parameter groups of LoRA+ if the plan asks for it."""
        if getattr(self, "optimizer", None) is None and self._plan.lora_plus_ratio is not None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = make_lora_plus_optimizer(
                self.model,
                optimizer_class,
                options,
                ratio=self._plan.lora_plus_ratio,
                weight_decay=self._plan.weight_decay,
            )
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not self.group_settings:
            self.group_settings = read_group_settings(optimizer)
        return optimizer

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:  # type: ignore[type-arg]
        """Return the loader of the training rows, which needs no list of all of them."""
        loader: torch.utils.data.DataLoader = super().get_train_dataloader()  # type: ignore[type-arg]
        replace_row_list(loader)
        return loader

    @property
    def randomness_checksum(self) -> int:
        """Return a checksum of the settings from which the random numbers of training are computed."""
        return self._randomness.checksum

    def begin_step(self) -> None:
        """Reset the record of the current optimizer step."""
        self.step_loss, self.step_tokens, self.step_batch = 0.0, 0, {}

    def read_step(self, all_finite: torch.Tensor) -> tuple[float, bool]:
        """Return the loss of the current step and whether `all_finite` is true, and count the step's tokens.

        All figures are read together, because each read waits until a GPU has done everything before it.
        """
        loss = torch.as_tensor(self.step_loss).detach().to(all_finite.device, torch.float64)
        value, finite = torch.stack([loss, all_finite.to(torch.float64)]).tolist()
        self.supervised_tokens += self.step_tokens
        return float(value), bool(finite)

    def training_step(self, model: torch.nn.Module, inputs: StepBatch, *args: object, **kwargs: object) -> torch.Tensor:
        """Run forward and backward of this process's micro-batches and sum the gradients of all processes.

        Return the loss of the step, detached.
        """
        self.step_batch, self.step_tokens = inputs, int(inputs["supervised_tokens"])
        micro_batches = inputs["micro_batches"]
        idle_passes = 0
        if self._lock_step.is_needed:  # splitting a padded batch waits for the card, so other bases skip it here
            idle_passes = self._lock_step.count_idle_passes(sum(len(self._split(batch)) for batch in micro_batches))
        loss = self._run_micro_batches(model, micro_batches, self.step_tokens)
        if idle_passes:
            self._run_idle_passes(model, inputs, idle_passes)
        self.step_loss = self._gradient_sum.sum_(model.parameters(), loss, inputs["own_tokens"], self.step_tokens)
        return self.step_loss

    def _run_micro_batches(self, model: torch.nn.Module, micro_batches: Sequence[Batch], count: int) -> torch.Tensor:
        """Run forward and backward, divided by `count` supervised tokens. Return the summed loss, detached."""
        loss = torch.zeros((), device=self.args.device)
        for micro_batch in micro_batches:
            loss += self._run_micro_batch(model, micro_batch, count)
        return loss

    def _run_idle_passes(self, model: torch.nn.Module, step: StepBatch, count: int) -> None:
        """Gather the layers of a sharded base as often as the process with most micro-batches; gradients stay."""
        batch = self._lock_step.make_idle_batch(step, self.data_collator.micro_batch_collator)
        metrics = {mode: {name: list(values) for name, values in old.items()} for mode, old in self._metrics.items()}
        with torch.random.fork_rng(devices=self._rng_devices()):
            for _ in range(count):
                self._run_micro_batch(model, batch, IDLE_COUNT)
        for mode, old in metrics.items():
            self._metrics[mode].clear()
            self._metrics[mode].update(old)

    def _split(self, batch: Batch) -> list[Batch]:
        """Return the parts of a micro-batch that are computed one after the other."""
        parts = [batch] if "packed_cu_seqlens" in batch else self.stock_path.split(batch)
        return [part for rows in parts for part in self._randomness.split(rows)]

    def _run_micro_batch(self, model: torch.nn.Module, inputs: Batch, count: float) -> torch.Tensor:
        """Run forward and backward of one micro-batch. Return its part of the loss, detached."""
        is_packed = "packed_cu_seqlens" in inputs
        losses = []
        for part in self._split(inputs):
            note_activity()
            # The backward pass is inside, because gradient checkpointing repeats the forward pass there.
            with self._randomness.seeded(part, self.state.global_step):
                losses.append(self._train_part(model, part, count, is_packed=is_packed))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _train_part(self, model: torch.nn.Module, inputs: Batch, count: float, *, is_packed: bool) -> torch.Tensor:
        """Run forward and backward of a batch that is computed together. Return its part of the loss, detached."""
        if not is_packed:
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch=count)
            return loss
        model.train()
        with self.compute_loss_context_manager():
            loss = self._packed_loss(model, self._prepare_inputs(inputs), count)
        self.accelerator.backward(loss)
        return loss.detach()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter only, because the base is known by digest and TRL would pickle its arguments."""
        assert output_dir is not None
        write_peft_adapter(self.model, Path(output_dir))

    def _save_checkpoint(self, *args: object, **kwargs: object) -> None:
        """Write a checkpoint in the first process; the others only call the callbacks, as Trainer does after it."""
        if current_group().is_first:
            super()._save_checkpoint(*args, **kwargs)

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Skip TRL's model card, because a checkpoint is not shared."""

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Measure the validation set when a callback has asked for it. Return nothing, because callbacks log it."""
        self.control.should_evaluate = False
        self.measure_validation()
        return {}

    def log_validation(self, loss: float | None, token_accuracy: float) -> None:
        """Log a measurement of the validation set; a non-finite loss is left out, because JSON has no number for it."""
        was_training = self.model.training
        self.model.eval()  # TRL then logs it as an evaluation
        try:
            self.log({"eval_loss": loss, "eval_token_accuracy": token_accuracy} if loss is not None else {})
        finally:
            self.model.train(was_training)

    def dry_run_step(self, inputs: Batch) -> float:
        """Run a micro-batch only for its memory, and return the loss; counters and random state stay."""
        saved_attributes = dict(vars(self))
        try:
            with torch.random.fork_rng(devices=self._rng_devices()):
                return float(self._run_micro_batches(self.model, [inputs], count_supervised_tokens(inputs)))
        finally:
            self.__dict__.update(saved_attributes)
            for values in self._metrics.values():  # TRL would log them with the first step
                values.clear()

    def _rng_devices(self) -> Sequence[torch.device]:
        """Return the devices besides the CPU whose random state must be restored."""
        device = self.args.device
        return [device] if device.type == "cuda" else []

    def score_rows(self, rows: Sequence[EncodedIds]) -> TokenScores:
        """Return the scores of the supervised tokens of validation rows, computed as one micro-batch in evaluation."""
        with torch.no_grad(), self.compute_loss_context_manager():
            inputs = self._prepare_inputs(self.data_collator.micro_batch_collator(rows))
            if "packed_cu_seqlens" in inputs:
                return self._score_packed(inputs)
            parts = self.stock_path.split(inputs)
            first_rows = range(0, len(rows), len(rows) // len(parts))
            return concatenate_scores([self._score_padded(part, n) for part, n in zip(parts, first_rows, strict=True)])

    def _score_packed(self, inputs: Batch) -> TokenScores:
        """Return the scores of a packed batch."""
        positions, ids, rest = split_supervised(inputs)
        ends = torch.tensor(inputs["packed_cu_seqlens"][1:], device=positions.device)
        rows = torch.searchsorted(ends, positions, right=True)
        if self._lm_head is not None:
            with self.accelerator.autocast():
                return TokenScores(rows, *self._lm_head.score_tokens(inputs))
        if positions.numel() > _MAX_LOGIT_POSITIONS and not self.stock_path.uses_own_logits:
            outputs = self.model(**rest, labels=inputs["labels"], fused_lm_head=True)
            return TokenScores(rows, -outputs.log_probs[0, positions], outputs.is_top1[0, positions] > 0)
        return score_logits(rows, compute_logits(self.model, positions, **rest)[0], ids)

    def _score_padded(self, inputs: Batch, first_row: int) -> TokenScores:
        """Return the scores of a padded batch whose first row has a number."""
        next_ids = inputs["labels"][:, 1:]
        is_supervised = next_ids != IGNORE_INDEX
        rows = is_supervised.nonzero()[:, 0] + first_row
        if not self.stock_path.uses_own_logits:
            outputs = self.model(**inputs, fused_lm_head=True)
            return TokenScores(rows, -outputs.log_probs[is_supervised], outputs.is_top1[is_supervised] > 0)
        positions = is_supervised.any(0).nonzero().squeeze(1)
        model_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        logits = compute_logits(self.model, positions, **model_inputs)[is_supervised[:, positions]]
        return score_logits(rows, logits, next_ids[is_supervised])

    def _packed_loss(self, model: torch.nn.Module, inputs: Batch, count: "float | torch.Tensor") -> torch.Tensor:
        """Return the summed cross entropy of a packed micro-batch, divided by `count`. Only training smooths labels."""
        smoothing = self._plan.label_smoothing if model.training else 0.0
        if self._lm_head is not None:
            with self.accelerator.autocast():
                return self._lm_head.loss(inputs, count, smoothing)
        positions, ids, rest = split_supervised(inputs)
        if not smoothing and (positions.numel() > _MAX_LOGIT_POSITIONS or self.aux_loss_enabled):
            model_inputs = rest | {"labels": inputs["labels"]}
            loss: torch.Tensor = self.compute_loss(model, model_inputs, num_items_in_batch=count)
            return loss
        logits = compute_logits(model, positions, **rest)
        return sum_cross_entropy(logits[0], ids, smoothing) / count

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: "float | torch.Tensor | None" = None,
    ) -> Any:
        """Return TRL's loss of a padded batch, or that of the model's own logits if they differ or labels are smooth.

        Only training smooths labels.
        """
        smoothing = self._plan.label_smoothing if model.training else 0.0
        if return_outputs or not (smoothing or self.stock_path.uses_own_logits):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        count = count_supervised_tokens(inputs) if num_items_in_batch is None else num_items_in_batch
        next_ids = inputs["labels"][:, 1:]
        positions = (next_ids != IGNORE_INDEX).any(0).nonzero().squeeze(1)
        model_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        logits = compute_logits(model, positions, **model_inputs)
        return sum_cross_entropy(logits.flatten(0, 1), next_ids[:, positions].flatten(), smoothing) / count
