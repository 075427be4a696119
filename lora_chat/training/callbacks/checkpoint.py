"""A trainer callback that decides when a checkpoint is written, and makes it count once it is."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.config.recipe import CheckpointSection
from lora_chat.errors import explain_write_errors
from lora_chat.planning.disk_space import checkpoint_bytes
from lora_chat.runs.checkpoints import MANIFEST, CommittedCheckpoint, commit_checkpoint, prune_checkpoints
from lora_chat.system.atomic_write import fsync_path
from lora_chat.training.optimizer_state import check_optimizer_state


def is_epoch_end(args: TrainingArguments, state: TrainerState, train_dataloader: Any) -> bool:
    """Whether the optimizer step just done is the last of an epoch, or of training."""
    steps = -(-len(train_dataloader) // args.gradient_accumulation_steps)
    return bool(state.global_step % steps == 0) or state.global_step >= state.max_steps


_MAX_CHECKPOINT_TIME_SHARE = 0.05
"""Of the time between two checkpoints, spent on one that is due by the clock."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where checkpoints go, how often, and which one is continued."""

    folder: Path
    settings: CheckpointSection
    identity: Mapping[str, Any]
    """What the run is, field by field; stands in every manifest."""
    resume: CommittedCheckpoint | None = None


class CheckpointCallback(TrainerCallback):
    """Checkpoints by step, by minutes and at the end of every epoch; older ones go only after a newer one counts."""

    def __init__(
        self,
        checkpoint_policy: CheckpointPolicy,
        metrics_path: Path,
        stop_requested: Callable[[], bool],
        check_weights: Callable[[TrainingArguments, TrainerState], None],
    ) -> None:
        self._policy = checkpoint_policy
        self._metrics_path = metrics_path
        self._stop_requested = stop_requested
        self._check_weights = check_weights
        self._last_time = time.monotonic()
        self.latest_checkpoint = checkpoint_policy.resume
        self.last_write_seconds = 0.0
        """Spent on the last checkpoint."""
        self._pending_folder: Path | None = None
        self._write_started = 0.0
        self._trainable_parameters = 0

    @contextmanager
    def explain_checkpoint_errors(self) -> Iterator[None]:
        """Training; a checkpoint that cannot be written ends it with a message, and leaves no half behind.

        Raises DiskFullError, DiskError or RecipeError. PyTorch's writer hides what the system said: it is asked again.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = self._pending_folder
            if folder is None:
                raise
            if not (folder / MANIFEST).exists():  # else it is whole, though the system may not have it on disk yet
                shutil.rmtree(folder, ignore_errors=True)
            needed = checkpoint_bytes(self._trainable_parameters)
            with explain_write_errors(folder, "a checkpoint", needed, self._recovery_hint()):
                if isinstance(error, RuntimeError):
                    _check_writable(folder.parent, needed)
                raise error

    def on_train_begin(self, *args: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        if self._policy.resume:  # Trainer has read the optimizer's state by now, and no step was made with it
            check_optimizer_state(optimizer, self._policy.resume.folder)
        self._trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        settings, step = self._policy.settings, state.global_step
        by_step = bool(settings.every_steps) and step % int(settings.every_steps or 1) == 0
        # Before the validation loss: what was trained is safe while it is measured.
        if by_step or is_epoch_end(args, state, train_dataloader) or self._is_interval_over() or self._stop_requested():
            self._check_weights(args, state)
            control.should_save = True
            self._pending_folder = self._policy.folder / f"checkpoint-{step}"
            self._write_started = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._pending_folder is not None
        fsync_path(self._metrics_path)  # what a checkpoint holds stands there too
        self.latest_checkpoint = commit_checkpoint(self._pending_folder, self._policy.identity)
        prune_checkpoints(self._policy.folder, self._policy.settings.keep)
        self._pending_folder = None
        self._last_time = time.monotonic()
        self.last_write_seconds = self._last_time - self._write_started

    def _is_interval_over(self) -> bool:
        minutes = self._policy.settings.every_minutes
        elapsed = time.monotonic() - self._last_time
        return bool(minutes) and elapsed >= max(
            60 * float(minutes or 0), self.last_write_seconds / _MAX_CHECKPOINT_TIME_SHARE
        )

    def _recovery_hint(self) -> str:
        if self.latest_checkpoint is None:
            return "No checkpoint had been written before."
        return (
            f"The checkpoint of step {self.latest_checkpoint.step} is whole: free some space, then go on with --resume."
        )


def _check_writable(folder: Path, size: int) -> None:
    """Raises OSError if so many bytes cannot be written there."""
    with tempfile.NamedTemporaryFile(prefix=".probe-", suffix=".part", dir=folder) as file:
        for begin in range(0, size, 1 << 24):
            file.write(bytes(min(1 << 24, size - begin)))
        file.flush()
