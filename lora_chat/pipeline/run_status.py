"""The progress of a run, and its messages when it is stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import SIGINT
from typing import Protocol

from lora_chat.errors import OutOfMemoryError, StoppedError
from lora_chat.runs.checkpoints import find_newest_step
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import display_path, quote_path
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.system.signals import first_received_signal
from lora_chat.training.progress_bar import ProgressView


class RunObserver(ProgressView, Protocol):
    """A receiver of the stages and steps of a run, which may stop it."""

    def show_stage(self, stage: str) -> None:
        """Receive the stage that begins."""


@dataclass
class RunProgress:
    """The progress of a run, updated by the pipeline."""

    command: str = "lora-chat sft RECIPE"
    """Command line of the run, for the hint to resume."""
    stage: str = "planning"
    run: RunFolder | None = None
    """Folder of the run, once the run can be resumed."""
    adapter_saved: bool = False
    """Whether the adapter of all steps is saved."""
    observer: RunObserver | None = None
    """Receiver of stages and steps; None shows the steps on stderr."""

    def enter_stage(self, stage: str) -> None:
        """Begin a stage. Raise StoppedError if a library suppressed a signal, or if the observer wants to stop."""
        if first_received_signal():
            raise self.stopped(first_received_signal())
        self.show_stage(stage)
        self.check_observer()

    def show_stage(self, stage: str) -> None:
        """Begin a stage that nothing stops, such as saving."""
        self.stage = stage
        if self.observer is not None:
            self.observer.show_stage(stage)

    def check_observer(self) -> None:
        """Raise StoppedError if the observer wants to stop the run."""
        if self.observer is not None and self.observer.wants_stop:
            raise self.stopped(SIGINT)

    def stopped(self, signal_number: int) -> StoppedError:
        """Return the error for a run that stops immediately."""
        if self.run is None:
            return StoppedError("Stopped before the run began.", signal_number)
        if self.adapter_saved:
            run_path = quote_path(self.run.path)
            return StoppedError(
                f"Stopped while {self.stage}. The adapter is saved: lora-chat chat {run_path}; "
                f"evaluate it: lora-chat eval {run_path}",
                signal_number,
            )
        step = find_newest_step(self.run.checkpoints)
        saved = "There is no checkpoint yet." if step is None else f"The checkpoint of step {step} is saved."
        return StoppedError(f"Stopped while {self.stage}. {saved}\n{self.format_resume_hint()}", signal_number)

    @contextmanager
    def explain_out_of_memory(self) -> Iterator[None]:
        """Turn an out-of-memory error after training into a message that shows where the adapter is."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            assert self.run is not None
            run_path = quote_path(self.run.path)
            raise OutOfMemoryError(
                f"Out of memory while {self.stage}. The adapter is saved: lora-chat chat {run_path}",
                f"end other programs that use the memory, then lora-chat eval {run_path}",
            ) from error

    def make_training_stop_error(self, step: int, steps: int, signal_number: int) -> StoppedError:
        """Return the error for a run that stops between two steps, after saving a checkpoint."""
        assert self.run is not None
        return StoppedError(
            f"Stopped after step {step} of {steps}; its checkpoint is saved.\n{self.format_resume_hint()}\n"
            f"The adapter of this step is in {display_path(self.run.adapter)}; try it: lora-chat chat "
            f"{quote_path(self.run.path)}",
            signal_number,
        )

    def format_resume_hint(self) -> str:
        """Return the command that continues the run."""
        assert self.run is not None
        return f"Continue: {self.command} --resume {quote_path(self.run.path)}"
