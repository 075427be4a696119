"""The requests that are being answered: all in shared steps, or one after another if the model does not allow it."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from lora_chat.inference.continuous.batch_check import BatchCheck, check_batching
from lora_chat.inference.continuous.batched_model import BatchedModel, DecodeRow
from lora_chat.inference.continuous.prefix_store import PrefixStore, ReadPrompt
from lora_chat.inference.continuous.request import BatchLimits, BatchStatistics, FinishReason, GenerationRequest
from lora_chat.inference.continuous.running_request import RunningRequest, Ticket
from lora_chat.inference.continuous.single_reply import generate_single
from lora_chat.inference.continuous.token_choice import NonFiniteLogitsError, TokenChooser
from lora_chat.inference.continuous.token_pool import TokenPool, TokenRange
from lora_chat.system.gpu_memory import release_gpu_memory
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.system.memory_usage import free_memory_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

NextTicket = Callable[[Callable[[GenerationRequest], bool]], Ticket | None]
_CACHE_SHARE = 0.25
"""Share of the free memory for keys and values by default."""
_MAX_DEFAULT_TOKENS = 2**17
_MAX_PREFIX_BYTES = 2**28
"""Memory for the keys and values of prompts whose requests ended, in bytes; at most half of all tokens."""


def start_answering(model: "PreTrainedModel", pad: int, limits: BatchLimits) -> "Answering":
    """Check how a model can answer requests, and return what answers them."""
    batched = BatchedModel(model, pad, TokenPool(0))
    check = check_batching(batched, model, pad)
    if check.reason:
        logger.info(f"Requests are answered one after another, because {check.reason}.")
        return SingleAnswering(model, pad, check)
    capacity = limits.max_cache_tokens or _choose_capacity(model, check, limits)
    batched.pool = TokenPool(capacity)
    return SharedAnswering(batched, limits, check)


def _choose_capacity(model: "PreTrainedModel", check: BatchCheck, limits: BatchLimits) -> int:
    """Return the number of tokens whose keys and values fit a share of the free memory."""
    device = model.device
    free = free_memory_bytes() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    largest = limits.max_running * limits.positions if limits.positions else _MAX_DEFAULT_TOKENS
    return max(1, min(int(free * _CACHE_SHARE) // check.bytes_per_token, largest))


def _read_shared_limit(batched: BatchedModel) -> int | None:
    """Return the length of the longest prompts of which no token is outside of a sliding window; None without one.

    The keys of a token outside of it are not kept, and the rest of a prompt is read without a window.
    """
    window = batched.smallest_window
    return None if window is None else window - 1


class Answering(ABC):
    """The requests that are being answered."""

    capacity: int | None = None
    """Tokens whose keys and values fit into memory; None if nothing limits them."""

    def __init__(self, check: BatchCheck) -> None:
        self._check = check
        self._prompt_tokens = self._generated_tokens = self._finished = self._steps = 0
        self._reused_tokens = self._prefix_hits = 0

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Return the number of requests that are being answered."""

    def tickets(self) -> list[Ticket]:
        """Return the requests that are being answered between two steps."""
        return []

    @abstractmethod
    def refresh(self, model: "PreTrainedModel") -> None:
        """Take a model whose adapters may have changed."""

    @abstractmethod
    def advance(self, next_ticket: NextTicket) -> None:
        """Start waiting requests and compute a step."""

    @abstractmethod
    def end_all(self, reason: FinishReason, message: str = "") -> None:
        """End all replies."""

    @abstractmethod
    def stop(self) -> None:
        """End a reply that is computed outside of shared steps. This may be called on any thread."""

    def statistics(self, num_waiting: int) -> BatchStatistics:
        """Return numbers since the start, and of this moment."""
        return BatchStatistics(
            running=self.num_running,
            waiting=num_waiting,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            generated_tokens=self._generated_tokens,
            prefix_hits=self._prefix_hits,
            finished=self._finished,
            steps=self._steps,
            cache_tokens=self._num_cached(),
            cache_capacity=self.capacity or 0,
            single_reason=self._check.reason,
            is_exact=self._check.is_exact,
        )

    def _num_cached(self) -> int:
        """Return the number of tokens whose keys and values are in memory."""
        return 0

    def finish(self, ticket: Ticket, reason: FinishReason, message: str = "") -> None:
        """End a reply."""
        self._finished += 1
        ticket.finish(reason, message)


class SingleAnswering(Answering):
    """One request at a time."""

    def __init__(self, model: "PreTrainedModel", pad: int, check: BatchCheck) -> None:
        super().__init__(check)
        self._model, self._pad = model, pad
        self._current: Ticket | None = None

    @property
    def num_running(self) -> int:
        """Return 1 while a request is answered."""
        return int(self._current is not None)

    def stop(self) -> None:
        """End the reply that is being computed at its next token."""
        if (ticket := self._current) is not None:
            ticket.cancel()

    def refresh(self, model: "PreTrainedModel") -> None:
        """Take a model whose adapters may have changed."""
        self._model = model

    def advance(self, next_ticket: NextTicket) -> None:
        """Answer one request."""
        ticket = next_ticket(lambda request: True)
        if ticket is None:
            return
        request = ticket.request
        if request.adapter is not None and request.adapter not in getattr(self._model, "peft_config", {}):
            self.finish(ticket, "removed")
            return
        self._current, reason, message = ticket, "length", ""
        chooser, self._prompt_tokens = TokenChooser(request), self._prompt_tokens + len(request.prompt)

        def receive(token: int, logits: torch.Tensor) -> bool:
            nonlocal reason
            if token in request.stop_ids:
                reason = "stop"
                return True
            ticket.pass_on(chooser.describe(token, logits))
            self._generated_tokens += 1
            self._steps += 1
            reason = ticket.find_end() or "length"
            return reason != "length"

        try:
            generate_single(self._model, self._pad, request, receive)
        except Exception as error:
            logger.exception("A reply failed.")
            reason, message = "failed", str(error)
        self._current = None
        self.finish(ticket, reason, message)  # type: ignore[arg-type]

    def end_all(self, reason: FinishReason, message: str = "") -> None:
        """Do nothing, because no reply is unfinished between two calls."""


class SharedAnswering(Answering):
    """Requests that share steps."""

    def __init__(self, batched: BatchedModel, limits: BatchLimits, check: BatchCheck) -> None:
        super().__init__(check)
        self._batched, self._limits = batched, limits
        self._pool, self.capacity = batched.pool, batched.pool.num_tokens
        self._running: list[RunningRequest] = []
        shared = check.max_shared_prompt if check.is_exact and limits.exact_prefixes else _read_shared_limit(batched)
        largest = min(self._pool.num_tokens // 2, _MAX_PREFIX_BYTES // check.bytes_per_token)
        self._prefixes = PrefixStore(self._pool, largest, shared if check.shares_prompts else 0, check.bytes_per_token)

    @property
    def num_running(self) -> int:
        """Return the number of requests that are being answered."""
        return len(self._running)

    def tickets(self) -> list[Ticket]:
        """Return the requests that are being answered."""
        return [running.ticket for running in self._running]

    def stop(self) -> None:
        """Do nothing, because all replies are computed in shared steps."""

    def _num_cached(self) -> int:
        return self._pool.num_used

    def refresh(self, model: "PreTrainedModel") -> None:
        """Take a model whose adapters may have changed, and end replies of adapters that were removed."""
        self._batched.refresh(model)
        self._prefixes.drop_adapters(self._batched.adapters)
        for running in list(self._running):
            if not self._batched.has_adapter(running.request.adapter):
                self._end(running, "removed")

    def advance(self, next_ticket: NextTicket) -> None:
        """Read the prompts of waiting requests that fit, and compute the next tokens of all running ones."""
        for running in list(self._running):
            if reason := running.ticket.find_end():
                self._end(running, reason)
        num_read = 0
        while num_read < self._limits.max_read_tokens:
            ticket = next_ticket(self._fits)
            if ticket is None:
                break
            num_read += len(ticket.request.prompt)
            self._start(ticket)
        if self._running:
            self._steps += 1
            self._advance(list(self._running))

    def _fits(self, request: GenerationRequest) -> bool:
        """Return whether a request can run beside those that run."""
        if len(self._running) >= self._limits.max_running:
            return False
        while not self._pool.can_allocate(len(request.prompt) + request.max_new_tokens):
            if not self._prefixes.drop_oldest():
                return False
        return True

    def _start(self, ticket: Ticket) -> None:
        """Read a prompt and choose the first token of its reply."""
        request = ticket.request
        tokens = self._pool.allocate(len(request.prompt) + request.max_new_tokens)
        if tokens is None or not self._batched.has_adapter(request.adapter):
            if tokens is not None:
                self._pool.free(tokens)
            self.finish(ticket, "removed")
            return
        running = RunningRequest(ticket, tokens, TokenChooser(request))
        self._running.append(running)
        try:
            logits = self._read(ticket, tokens)
        except Exception as error:
            logger.exception("Reading a prompt failed.")
            self._end(running, "failed", str(error))
            return
        self._prompt_tokens += len(request.prompt)
        running.read = ReadPrompt(request.adapter, request.prompt, tokens, logits.clone())
        self._accept(running, logits)

    def _read(self, ticket: Ticket, tokens: TokenRange) -> torch.Tensor:
        """Return the logits (vocabulary,) after a prompt, of which only the part is read that was not read before."""
        request = ticket.request
        reads = [running.read for running in self._running if running.read is not None]
        reuse = self._prefixes.find(request.adapter, request.prompt, reads)
        if reuse is None:
            return self._batched.read(request.prompt, request.adapter, tokens)
        self._pool.copy(reuse.source.tokens.begin, tokens.begin, reuse.num_tokens)
        self._prefix_hits += 1
        self._reused_tokens += reuse.num_tokens
        ticket.reused_tokens = reuse.num_tokens
        if reuse.num_tokens == len(request.prompt):
            return reuse.source.logits
        return self._batched.read_rest(request.prompt, request.adapter, tokens, reuse.num_tokens)

    def _advance(self, batch: list[RunningRequest]) -> None:
        """Compute the next tokens of running requests. A GPU that runs out of memory gets half of them at a time."""
        rows = [DecodeRow(each.last_token, each.position, each.tokens, each.request.adapter) for each in batch]
        is_too_large = False
        try:
            logits = self._batched.decode(rows)
        except Exception as error:
            is_too_large = len(batch) > 1 and self._batched.is_on_gpu and is_out_of_memory(error)
            if not is_too_large:
                logger.exception("A step failed.")
                for running in batch:
                    self._end(running, "failed", str(error))
                return
        if is_too_large:  # after the `except` block nothing refers to the tensors of the step
            release_gpu_memory()
            half = len(batch) // 2
            logger.info(f"The GPU ran out of memory for a step of {len(batch)} requests; continuing with {half}.")
            self._advance(batch[:half])
            self._advance(batch[half:])
            return
        for running, row in zip(batch, logits, strict=True):
            self._accept(running, self._batched.limit_vocabulary(row, running.request.adapter))

    def _accept(self, running: RunningRequest, logits: torch.Tensor) -> None:
        """Choose the next token of a request and end its reply if it is complete."""
        try:
            reason = running.accept(running.chooser.choose(logits))
        except Exception as error:
            if not isinstance(error, NonFiniteLogitsError):
                logger.exception("Choosing a token failed.")
            self._end(running, "failed", str(error))
            return
        self._generated_tokens += reason != "stop"
        if reason:
            self._end(running, reason)

    def _end(self, running: RunningRequest, reason: FinishReason, message: str = "") -> None:
        """End a reply and free its memory."""
        self._running.remove(running)
        if running.read is not None and reason not in ("removed", "failed"):
            self._prefixes.keep(running.read)
        else:
            self._pool.free(running.tokens)
        self.finish(running.ticket, reason, message)

    def end_all(self, reason: FinishReason, message: str = "") -> None:
        """End all replies."""
        for running in list(self._running):
            self._end(running, reason, message)
