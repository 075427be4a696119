"""A fine-tuning run with events, which Ctrl-C and errors of the user's function stop in order."""

from collections.abc import Collection
from contextlib import nullcontext
from signal import SIGINT

from lora_chat.config.recipe import Recipe
from lora_chat.errors import StoppedError
from lora_chat.in_process.progress import OnProgress, ProgressEvent, forwarded_messages
from lora_chat.in_process.results import FineTuneResult, read_run_result
from lora_chat.pipeline.fine_tune import fine_tune
from lora_chat.pipeline.resume import ResumeRequest
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.pipeline.sft_result import format_result
from lora_chat.system.console import display_path
from lora_chat.training.progress_bar import StepReport


class CallRunProgress(RunProgress):
    """The progress of a run that a call of the Python API started."""

    def format_resume_hint(self) -> str:
        """Return the call that continues the run."""
        assert self.run is not None
        return f"Continue: fine_tune(recipe, resume={display_path(self.run.path)!r})"


class EventObserver:
    """An observer that makes events for the user's function, and stops the run if the function raises an error."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._stage = "planning"
        self.error: BaseException | None = None
        """Error that the user's function raised; it receives no event after it."""

    @property
    def wants_stop(self) -> bool:
        """Return whether the user's function raised an error."""
        return self.error is not None

    def show_stage(self, stage: str) -> None:
        self._stage = stage
        self._send(ProgressEvent(stage))

    def show_message(self, text: str) -> None:
        """Pass on a message for people."""
        self._send(ProgressEvent(self._stage, message=text))

    def show_step(self, report: StepReport) -> None:
        event = ProgressEvent(
            self._stage,
            step=report.step,
            steps=report.steps,
            loss=report.loss,
            learning_rate=report.learning_rate,
            tokens_per_second=report.tokens_per_second,
            seconds_left=report.seconds_left,
        )
        self._send(event)

    def show_validation(self, step: int, steps: int, loss: float) -> None:
        self._send(ProgressEvent(self._stage, step=step, steps=steps, validation_loss=loss))

    def close(self) -> None:
        pass

    def _send(self, event: ProgressEvent) -> None:
        """Call the user's function; keep its error, because the run first writes a checkpoint."""
        if self._on_progress is None or self.error is not None:
            return
        try:
            self._on_progress(event)
        except BaseException as error:  # Ctrl-C may come while the function runs
            self.error = error


def run_fine_tuning(
    recipe: Recipe,
    resume: bool | str,
    on_progress: OnProgress | None,
    accept_changes: Collection[str],
    *,
    accept_template: bool,
    adopt: bool,
) -> FineTuneResult:
    """Train an adapter. Raise KeyboardInterrupt after Ctrl-C, and the error of the user's function if it raised one."""
    request = None
    if resume:
        request = ResumeRequest(resume if isinstance(resume, str) else None, accept_changes, adopt)
    observer = EventObserver(on_progress)
    progress = CallRunProgress(observer=observer)
    try:
        with forwarded_messages(observer.show_message) if on_progress else nullcontext():
            result = fine_tune(recipe, progress, request, accept_template=accept_template)
            observer.show_message(format_result(result))
            observer.show_stage("finished")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(str(progress.stopped(SIGINT))) from observer.error
    except StoppedError as stopped:
        if observer.error is None:
            raise
        _add_note(observer.error, str(stopped))
        raise observer.error from stopped
    if observer.error is not None:
        raise observer.error
    return read_run_result(result)


def _add_note(error: BaseException, note: str) -> None:
    """Show a note below an error, from Python 3.11 on."""
    if hasattr(error, "add_note"):
        error.add_note(note)
