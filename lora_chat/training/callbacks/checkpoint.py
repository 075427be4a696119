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
from lora_chat.runs.checkpoints import MANIFEST, Commit, commit, prune
from lora_chat.system.atomic_write import sync
from lora_chat.training.optimizer_state import check_optimizer_state


def ends_epoch(args: TrainingArguments, state: TrainerState, train_dataloader: Any) -> bool:
    """Whether the optimizer step just done is the last of an epoch, or of training."""
    steps = -(-len(train_dataloader) // args.gradient_accumulation_steps)
    return bool(state.global_step % steps == 0) or state.global_step >= state.max_steps


_LARGEST_SHARE = 0.05
"""Of the time between two checkpoints, spent on one that is due by the clock."""


@dataclass(frozen=True)
class Keeping:
    """Where checkpoints go, how often, and which one is continued."""

    folder: Path
    settings: CheckpointSection
    identity: Mapping[str, Any]
    """What the run is, field by field; stands in every manifest."""
    resume: Commit | None = None


class Committer(TrainerCallback):
    """Checkpoints by step, by minutes and at the end of every epoch; older ones go only after a newer one counts."""

    def __init__(
        self,
        keeping: Keeping,
        metrics: Path,
        asked: Callable[[], bool],
        check: Callable[[TrainingArguments, TrainerState], None],
    ) -> None:
        self._keeping = keeping
        self._metrics = metrics
        self._asked = asked
        self._check = check
        self._last_time = time.monotonic()
        self.newest = keeping.resume
        self.seconds = 0.0
        """Spent on the last checkpoint."""
        self._writing: Path | None = None
        self._began = 0.0
        self._trainable = 0

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Training; a checkpoint that cannot be written ends it with a message, and leaves no half behind.

        Raises SpaceError, DiskError or RecipeError. PyTorch's writer hides what the system said: it is asked again.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = self._writing
            if folder is None:
                raise
            if not (folder / MANIFEST).exists():  # else it is whole, though the system may not have it on disk yet
                shutil.rmtree(folder, ignore_errors=True)
            needed = checkpoint_bytes(self._trainable)
            with explain_write_errors(folder, "a checkpoint", needed, self._after()):
                if isinstance(error, RuntimeError):
                    _try_to_write(folder.parent, needed)
                raise error

    def on_train_begin(self, *args: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        if self._keeping.resume:  # Trainer has read the optimizer's state by now, and no step was made with it
            check_optimizer_state(optimizer, self._keeping.resume.folder)
        self._trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        settings, step = self._keeping.settings, state.global_step
        by_step = bool(settings.every_steps) and step % int(settings.every_steps or 1) == 0
        # Before the validation loss: what was trained is safe while it is measured.
        if by_step or ends_epoch(args, state, train_dataloader) or self._is_time() or self._asked():
            self._check(args, state)
            control.should_save = True
            self._writing = self._keeping.folder / f"checkpoint-{step}"
            self._began = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._writing is not None
        sync(self._metrics)  # what a checkpoint holds stands there too
        self.newest = commit(self._writing, self._keeping.identity)
        prune(self._keeping.folder, self._keeping.settings.keep)
        self._writing = None
        self._last_time = time.monotonic()
        self.seconds = self._last_time - self._began

    def _is_time(self) -> bool:
        minutes = self._keeping.settings.every_minutes
        passed = time.monotonic() - self._last_time
        return bool(minutes) and passed >= max(60 * float(minutes or 0), self.seconds / _LARGEST_SHARE)

    def _after(self) -> str:
        if self.newest is None:
            return "No checkpoint had been written before."
        return f"The checkpoint of step {self.newest.step} is whole: free some space, then go on with --resume."


def _try_to_write(folder: Path, size: int) -> None:
    """Raises OSError if so many bytes cannot be written there."""
    with tempfile.NamedTemporaryFile(prefix=".probe-", suffix=".part", dir=folder) as file:
        for begin in range(0, size, 1 << 24):
            file.write(bytes(min(1 << 24, size - begin)))
        file.flush()
