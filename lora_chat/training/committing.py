"""A trainer callback that decides when a checkpoint is written, and makes it count once it is."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_chat.errors import explain_write_errors
from lora_chat.planning.recipe import CheckpointSection
from lora_chat.training.checkpoints import Commit, commit, prune


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

    def __init__(self, keeping: Keeping, asked: Callable[[], bool]) -> None:
        self._keeping = keeping
        self._asked = asked
        self._last_time = time.monotonic()
        self.newest = keeping.resume
        self.seconds = 0.0
        """Spent on checkpoints so far."""
        self._writing: Path | None = None
        self._began = 0.0

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Training; a checkpoint that cannot be written ends it with a message, and leaves no half behind.

        Raises SpaceError or RecipeError. PyTorch's writer hides what the system said, so it is asked again.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = self._writing
            if folder is None:
                raise
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
            shutil.rmtree(folder, ignore_errors=True)
            with explain_write_errors(folder, "a checkpoint"):
                if not isinstance(error, RuntimeError):
                    raise error
                _try_to_write(folder.parent, max(2 * size, 1 << 20))
            raise

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        settings = self._keeping.settings
        steps, minutes = settings.every_steps, settings.every_minutes
        by_step = bool(steps) and state.global_step % int(steps or 1) == 0
        by_time = bool(minutes) and time.monotonic() - self._last_time >= 60 * float(minutes or 0)
        if by_step or by_time or self._asked():
            self._ask(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.newest is None or self.newest.step != state.global_step:
            self._ask(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._writing is not None
        self.newest = commit(self._writing, self._keeping.identity)
        self._writing = None
        prune(self._keeping.folder, self._keeping.settings.keep)
        self._last_time = time.monotonic()
        self.seconds += self._last_time - self._began

    def _ask(self, state: TrainerState, control: TrainerControl) -> None:
        control.should_save = True
        self._writing = self._keeping.folder / f"checkpoint-{state.global_step}"
        self._began = time.monotonic()


def _try_to_write(folder: Path, size: int) -> None:
    """Raises OSError if so many bytes cannot be written there."""
    probe = folder / ".probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(size))
    finally:
        probe.unlink(missing_ok=True)
