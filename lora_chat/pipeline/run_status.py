"""How far a run has come, and what to tell someone who stopped it."""

from dataclasses import dataclass

from lora_chat.errors import StoppedError
from lora_chat.runs.checkpoints import find_newest_step
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import display_path, quote_path
from lora_chat.system.signals import first_received_signal


@dataclass
class RunProgress:
    """Kept up to date by the pipeline."""

    command: str = "lora-chat sft RECIPE"
    """What was typed, to be typed again."""
    stage: str = "planning"
    run: RunFolder | None = None
    """Once there is something to go on with."""
    adapter_saved: bool = False
    """Whether the adapter of all steps is there."""

    def enter_stage(self, stage: str) -> None:
        """Begin a stage; raises StoppedError if a signal came in the one before and a library swallowed it."""
        if first_received_signal():
            raise self.stopped(first_received_signal())
        self.stage = stage

    def stopped(self, signal_number: int) -> StoppedError:
        """The end of a run that was stopped at once."""
        if self.run is None:
            return StoppedError("Stopped; nothing was begun.", signal_number)
        if self.adapter_saved:
            place = quote_path(self.run.path)
            return StoppedError(
                f"Stopped while {self.stage}. The adapter is whole: lora-chat chat {place}; "
                f"measure it: lora-chat eval {place}",
                signal_number,
            )
        step = find_newest_step(self.run.checkpoints)
        kept = "No step is in a checkpoint yet." if step is None else f"The checkpoint of step {step} is whole."
        return StoppedError(f"Stopped while {self.stage}. {kept}\n{self.format_resume_hint()}", signal_number)

    def make_training_stop_error(self, step: int, steps: int, signal_number: int) -> StoppedError:
        """The end of a run that was stopped between two steps, with a checkpoint."""
        assert self.run is not None
        return StoppedError(
            f"Stopped after step {step} of {steps}; a checkpoint of it is whole.\n{self.format_resume_hint()}\n"
            f"What was learned by then is in {display_path(self.run.adapter)}; try it: lora-chat chat "
            f"{quote_path(self.run.path)}",
            signal_number,
        )

    def format_resume_hint(self) -> str:
        """How to resume."""
        assert self.run is not None
        return f"Go on: {self.command} --resume {quote_path(self.run.path)}"
