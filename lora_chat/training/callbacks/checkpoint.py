"""Callback that decides when a checkpoint is written, and commits it after it is written."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.config.recipe import CheckpointSection
from lora_chat.errors import explain_write_errors
from lora_chat.planning.disk_space import checkpoint_bytes
from lora_chat.processes.group import current_group
from lora_chat.runs.checkpoints import MANIFEST, CommittedCheckpoint, commit_checkpoint, prune_checkpoints
from lora_chat.system.atomic_write import fsync_path
from lora_chat.training.callbacks.agreement import StepAgreement
from lora_chat.training.callbacks.step_schedule import MeasurementSchedule, is_epoch_end
from lora_chat.training.optimizer_state import check_optimizer_state
from lora_chat.training.stop_request import StopRequest

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

_MAX_CHECKPOINT_TIME_SHARE = 0.05
"""Largest share of training time that checkpoints by the clock may take."""
_WRITE_TEST_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class CheckpointPolicy:
    """The folder and the frequency of checkpoints, and the checkpoint to resume."""

    folder: Path
    settings: CheckpointSection
    identity: Mapping[str, object]
    """Fields that identify the run; each manifest records them."""
    resume: CommittedCheckpoint | None = None


class CheckpointCallback(TrainerCallback):
    """Writer of checkpoints by step, by minutes, at the end of each epoch, before measurements and requested stops.

    Only the first process of a group writes them.
    """

    def __init__(
        self,
        checkpoint_policy: CheckpointPolicy,
        metrics_path: Path,
        stop_request: StopRequest,
        schedule: MeasurementSchedule,
        agreement: StepAgreement,
    ) -> None:
        self._policy = checkpoint_policy
        self._metrics_path = metrics_path
        self._stop_request = stop_request
        self._schedule = schedule
        """Steps whose validation set is measured; each has a checkpoint, so that an interrupted one is repeated."""
        self._group = current_group()
        self._agreement = agreement
        agreement.is_checkpoint_due = self._is_interval_over
        self._last_time = time.monotonic()
        self.latest_checkpoint = checkpoint_policy.resume
        self.last_write_seconds = 0.0
        """Time to write and commit the last checkpoint, in seconds."""
        self._pending_folder: Path | None = None
        self._write_started = 0.0
        self._trainable_parameters = 0

    @contextmanager
    def explain_checkpoint_errors(self) -> Iterator[None]:
        """Delete an unfinished checkpoint and raise DiskFullError, DiskError or UsageError if it cannot be written.

        PyTorch's writer hides the system's error, so another write finds it out.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = self._pending_folder
            if folder is None:
                raise
            if not (folder / MANIFEST).exists():  # with a manifest it is complete, although it may not be synced yet
                shutil.rmtree(folder, ignore_errors=True)
            needed = checkpoint_bytes(self._trainable_parameters)
            with explain_write_errors(folder, "a checkpoint", needed, self._recovery_hint()):
                if isinstance(error, RuntimeError):
                    _check_writable(folder.parent, needed)
                raise error

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: "torch.nn.Module | None" = None,
        optimizer: "torch.optim.Optimizer | None" = None,
        **kwargs: object,
    ) -> None:
        """Check the optimizer state that Trainer has read from the resumed checkpoint."""
        assert model is not None
        assert optimizer is not None
        if self._policy.resume:
            check_optimizer_state(optimizer, self._policy.resume.folder)
        self._trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: "DataLoader[object] | None" = None,
        **kwargs: object,
    ) -> None:
        """Request a checkpoint if one is due; it is written before the validation loss is measured."""
        settings, step = self._policy.settings, state.global_step
        by_step = bool(settings.every_steps) and step % int(settings.every_steps or 1) == 0
        stopping = bool(self._stop_request.signal_number)
        by_step = by_step or self._schedule.is_due(args, state, train_dataloader)
        if by_step or is_epoch_end(args, state, train_dataloader) or self._agreement.checkpoint_due or stopping:
            control.should_save = True
            self._pending_folder = self._policy.folder / f"checkpoint-{step}"
            self._write_started = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Commit the checkpoint that was written, then delete older ones."""
        assert self._pending_folder is not None
        if self._group.is_first:
            fsync_path(self._metrics_path)  # the metrics of the checkpoint's steps must survive with it
            identity, processes = self._policy.identity, self._group.size
            self.latest_checkpoint = commit_checkpoint(self._pending_folder, identity, processes)
            prune_checkpoints(self._policy.folder, self._policy.settings.keep)
        self._pending_folder = None
        self._last_time = time.monotonic()
        self.last_write_seconds = self._last_time - self._write_started

    def _is_interval_over(self) -> bool:
        """Return whether a checkpoint is due by the clock; slow writes make the interval longer."""
        minutes = self._policy.settings.every_minutes
        elapsed = time.monotonic() - self._last_time
        return bool(minutes) and elapsed >= max(
            60 * float(minutes or 0), self.last_write_seconds / _MAX_CHECKPOINT_TIME_SHARE
        )

    def _recovery_hint(self) -> str:
        """Return how to continue after a failed write."""
        if self.latest_checkpoint is None:
            return "No earlier checkpoint exists."
        return (
            f"The checkpoint of step {self.latest_checkpoint.step} is intact. "
            "Fix: free some space, then continue with --resume."
        )


def _check_writable(folder: Path, size: int) -> None:
    """Write `size` bytes to a temporary file. Raise OSError if that fails."""
    with tempfile.NamedTemporaryFile(prefix=".probe-", suffix=".part", dir=folder) as file:
        for begin in range(0, size, _WRITE_TEST_CHUNK_BYTES):
            file.write(bytes(min(_WRITE_TEST_CHUNK_BYTES, size - begin)))
        file.flush()
