"""The thread that owns a model in memory and answers requests, one after another."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from lora_chat.inference.continuous.request import (
    BatchLimits,
    BatchStatistics,
    Finish,
    FinishReason,
    GeneratedToken,
    GenerationRequest,
    QueueFullError,
    RequestTooLongError,
)
from lora_chat.inference.sampler import make_processors
from lora_chat.models.named_adapters import using_adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Receiver = Callable[[GeneratedToken | Finish], None]
_IDLE_SECONDS = 0.5


@dataclass
class Ticket:
    """A submitted request."""

    request: GenerationRequest
    receive: Receiver
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """End the reply at its next token."""
        self.cancelled.set()


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
        self.model = model
        """The base, or the base wrapped with its adapters; a function of `run_between_steps` may replace it."""
        self._pad, self._limits = pad, limits
        self._waiting: deque[Ticket] = deque()
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing, self._running = False, 0
        self._prompt_tokens = self._generated_tokens = 0
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Return whether requests are answered."""
        return self._thread.is_alive() and not self._closing

    def submit(self, request: GenerationRequest, receive: Receiver) -> Ticket:
        """Answer a request; `receive` is called on the generator's thread and must return at once.

        Raises QueueFullError or RequestTooLongError.
        """
        window = self._limits.positions
        if window is not None and len(request.prompt) + request.max_new_tokens > window:
            raise RequestTooLongError(
                f"{len(request.prompt)} prompt tokens and {request.max_new_tokens} new ones exceed {window} positions"
            )
        ticket = Ticket(request, receive)
        with self._changed:
            if self._closing or len(self._waiting) >= self._limits.max_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def run_between_steps(self, function: "Callable[[PreTrainedModel], Result]") -> Result:
        """Return the result of a function that may change the model, called on the generator's thread."""
        job = _Job(function)
        with self._changed:
            if self._closing:
                raise RuntimeError("the generator is closed")
            self._jobs.append(job)
            self._changed.notify()
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # the function's own result

    def statistics(self) -> BatchStatistics:
        """Return numbers since the start, and of this moment."""
        return BatchStatistics(
            running=self._running,
            waiting=len(self._waiting),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )

    def close(self, timeout: float) -> None:
        """Refuse new requests, and wait up to `timeout` seconds for those that run or wait."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._jobs or self._closing):
                    self._changed.wait(_IDLE_SECONDS)
                job = self._jobs.popleft() if self._jobs else None
                ticket = self._waiting.popleft() if job is None and self._waiting else None
                if job is None and ticket is None and self._closing:
                    return
            if job is not None:
                self._run_job(job)
            elif ticket is not None:
                self._running = 1
                ticket.receive(self._answer(ticket))
                self._running = 0

    def _run_job(self, job: _Job) -> None:
        try:
            job.result = job.function(self.model)
        except BaseException as error:
            job.error = error
        job.done.set()

    def _answer(self, ticket: Ticket) -> Finish:
        """Generate a reply, and return why it ended."""
        try:
            return Finish(self._generate(ticket))
        except Exception as error:
            logger.exception("A reply failed.")
            return Finish("failed", str(error))

    def _generate(self, ticket: Ticket) -> FinishReason:
        import torch

        request = ticket.request
        processors = make_processors(request.generation, [request.number])
        cache: object = None
        ids = torch.tensor([request.prompt], device=self.model.device)
        self._prompt_tokens += len(request.prompt)
        for _ in range(request.max_new_tokens):
            if ticket.cancelled.is_set():
                return "cancelled"
            if request.deadline is not None and time.monotonic() >= request.deadline:
                return "deadline"
            with torch.inference_mode(), using_adapter(self.model, request.adapter):
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, scores = output.past_key_values, output.logits[:, -1].float()
                token = int(processors(ids, scores).argmax())
            if token in request.stop_ids:
                return "stop"
            ticket.receive(_describe(token, scores[0], request.top_logprobs))
            self._generated_tokens += 1
            ids = torch.tensor([[token]], device=self.model.device)
        return "length"


def _describe(token: int, scores: "torch.Tensor", count: int | None) -> GeneratedToken:
    """Return a token with its log-probability and its most probable alternatives. `scores` is (vocabulary,)."""
    if count is None:
        return GeneratedToken(token, math.nan)
    logprobs = scores.log_softmax(dim=-1)
    values, ids = logprobs.topk(count)
    top = tuple(zip(map(int, ids.tolist()), values.tolist(), strict=True))
    return GeneratedToken(token, float(logprobs[token]), top)
