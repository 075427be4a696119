"""The thread that owns a model in memory and answers requests together."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from lora_chat.inference.continuous.request import (
    BatchLimits,
    BatchStatistics,
    GenerationRequest,
    QueueFullError,
    RequestTooLongError,
)
from lora_chat.inference.continuous.running_request import Receiver
from lora_chat.inference.continuous.running_request import Ticket as Ticket

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lora_chat.inference.continuous.request_answers import Answering

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass
class _Job:
    """A function that runs on the generator's thread, and its result."""

    function: "Callable[[PreTrainedModel], object]"
    done: threading.Event = field(default_factory=threading.Event)
    result: object = None
    error: BaseException | None = None


class BatchGenerator:
    """A thread that owns a model and answers requests."""

    def __init__(self, model: "PreTrainedModel", pad: int, limits: BatchLimits) -> None:
        """Check how the model can answer, and start the thread."""
        from lora_chat.inference.continuous.request_answers import start_answering

        self.model = model
        """The base, or the base wrapped with its adapters; a function of `run_between_steps` may replace it."""
        self._limits = limits
        self._waiting: deque[Ticket] = deque()
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closing = self._is_stopped = False
        self._answers: Answering = start_answering(model, pad, limits)
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Return whether requests are answered."""
        return self._thread.is_alive() and not self._is_closing

    def submit(self, request: GenerationRequest, receive: Receiver) -> Ticket:
        """Answer a request; `receive` is called on the generator's thread and must return at once.

        Raises QueueFullError or RequestTooLongError, and ValueError for ids that the model does not have.
        """
        if not request.prompt or request.max_new_tokens < 1:
            raise ValueError("a request needs a prompt and at least one new token")
        num_rows = self.model.get_input_embeddings().weight.shape[0]
        if not 0 <= min(request.prompt) <= max(request.prompt) < num_rows:
            raise ValueError(f"the ids of a prompt must be from 0 to {num_rows - 1}")
        length = len(request.prompt) + request.max_new_tokens
        for limit, name in ((self._limits.positions, "positions"), (self._answers.capacity, "tokens of memory")):
            if limit is not None and length > limit:
                raise RequestTooLongError(
                    f"{len(request.prompt)} prompt tokens and {request.max_new_tokens} new ones exceed {limit} {name}"
                )
        ticket = Ticket(request, receive)
        with self._changed:
            if self._is_closing or len(self._waiting) >= self._limits.max_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def run_between_steps(self, function: "Callable[[PreTrainedModel], Result]") -> Result:
        """Return the result of a function that may change the model, called on the generator's thread."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("a function that runs between steps cannot wait for another one")
        job = _Job(function)
        with self._changed:
            if self._is_closing:
                raise RuntimeError("the generator is closed")
            self._jobs.append(job)
            self._changed.notify()
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # the function's own result

    def is_using(self, adapter: str) -> bool:
        """Return whether a request for an adapter waits or runs; call it in a function of `run_between_steps`."""
        return any(ticket.request.adapter == adapter for ticket in (*self._waiting, *self._answers.tickets()))

    def statistics(self) -> BatchStatistics:
        """Return numbers since the start, and of this moment."""
        return self._answers.statistics(len(self._waiting))

    def close(self, timeout: float) -> None:
        """Refuse new requests, and wait up to `timeout` seconds for those that run or wait; then end them."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout)
        self._is_stopped = True
        self._answers.stop()
        self._thread.join()

    def _work(self) -> None:
        """Answer requests until the generator is closed."""
        while True:
            with self._changed:
                while not (self._waiting or self._jobs or self._is_closing or self._answers.num_running):
                    self._changed.wait()
                jobs, self._jobs = self._jobs, deque()
                idle = not (self._waiting or jobs or self._answers.num_running)
            if self._is_stopped or (idle and self._is_closing):
                break
            for job in jobs:
                self._run(job)
            try:
                self._end_waiting()
                self._answers.advance(self._next_ticket)
            except Exception as error:
                logger.exception("A step failed.")
                self._answers.end_all("failed", str(error))
        for job in self._jobs:
            job.error = RuntimeError("the generator is closed")
            job.done.set()
        self._answers.end_all("cancelled")
        while self._waiting:
            self._answers.finish(self._waiting.popleft(), "cancelled")

    def _run(self, job: _Job) -> None:
        """Run a function and prepare the model, which it may have changed."""
        try:
            try:
                job.result = job.function(self.model)
            finally:
                self._answers.refresh(self.model)
        except BaseException as error:
            job.error = error
        job.done.set()

    def _end_waiting(self) -> None:
        """End waiting requests that were cancelled or are too late."""
        with self._changed:
            ended = [(ticket, reason) for ticket in self._waiting if (reason := ticket.find_end())]
            for ticket, _ in ended:
                self._waiting.remove(ticket)
        for ticket, reason in ended:
            self._answers.finish(ticket, reason)

    def _next_ticket(self, fits: Callable[[GenerationRequest], bool]) -> Ticket | None:
        """Return the request that waited longest if it fits, and take it out of the line."""
        with self._changed:
            if self._waiting and fits(self._waiting[0].request):
                return self._waiting.popleft()
        return None
