"""The replies of a task while the generator works on them: its thread sends tokens, and the event loop reads parts."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from lora_chat.inference.continuous.request import Finish, GeneratedToken, QueueFullError, RequestTooLongError
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.openai.choice import CUT_REASONS, FINISH_REASONS, Choice, ChoiceDelta
from lora_chat.serving.openai.reply_task import ReplyTask

if TYPE_CHECKING:
    from lora_chat.inference.continuous.batch_generator import BatchGenerator, Ticket
    from lora_chat.serving.request_record import RequestRecord
    from lora_chat.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)


class RunningReplies:
    """The replies of one request. Whoever creates it calls `cancel` once at the end, whatever happens."""

    def __init__(
        self, generator: "BatchGenerator", task: ReplyTask, record: "RequestRecord", telemetry: "Telemetry"
    ) -> None:
        """Submit all requests of a task. Raise ApiError if the queue is full or a request never fits."""
        self._loop = asyncio.get_running_loop()
        self._received: asyncio.Queue[tuple[int, GeneratedToken | Finish]] = asyncio.Queue()
        self._record, self._telemetry = record, telemetry
        self.prompt_tokens = sum(map(len, task.prompts))
        record.model, record.prompt_tokens = task.model.name, self.prompt_tokens
        requests, self._count = task.requests, task.count
        self.choices = [Choice(index, task) for index in range(len(requests))]
        self._tickets: list[Ticket] = []
        try:
            for index, request in enumerate(requests):
                self._tickets.append(generator.submit(request, self._make_receiver(index)))
        except QueueFullError as error:
            self.cancel()
            raise ApiError(429, "Too many replies wait to be generated.", "rate_limit_error", code="busy") from error
        except RequestTooLongError as error:
            self.cancel()
            raise ApiError(400, f"The request does not fit: {error}.", code="context_length_exceeded") from error
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End all replies that are not complete."""
        for ticket in self._tickets:
            ticket.cancel()
        for choice in self.choices:
            self._telemetry.count_filtered(choice.filter.counts)

    async def read_deltas(self) -> AsyncIterator[ChoiceDelta]:
        """Yield the parts of all replies as they are generated. Raise ApiError if one of them fails."""
        running = len(self.choices)
        while running:
            index, item = await self._received.get()
            choice = self.choices[index]
            if choice.finish is not None:  # a token that was generated after a stop text
                continue
            if isinstance(item, GeneratedToken):
                self._record.note_token()
                delta = choice.feed(item)
            elif item.reason in FINISH_REASONS:
                delta = choice.end(FINISH_REASONS[item.reason])
            elif item.reason in CUT_REASONS and choice.num_tokens:
                delta = choice.end(CUT_REASONS[item.reason])
            else:
                raise _explain_failure(item)
            if delta.finish is not None:
                running -= 1
                self._record.finish = delta.finish
                self._tickets[index].cancel()
            if not delta.is_empty:
                yield delta

    def describe_usage(self) -> dict[str, object]:
        """Return the exact numbers of tokens; a stop token is not counted."""
        firsts = self._tickets[:: self._count]  # each prompt counts once, whatever the number of its replies
        completion = sum(choice.num_tokens for choice in self.choices)
        reasoning = sum(choice.num_reasoning_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": sum(ticket.reused_tokens for ticket in firsts)},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    def _make_receiver(self, index: int) -> "Receiver":
        return Receiver(self._loop, self._received, index)


class Receiver:
    """The receiver of one reply, called on the generator's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        received: "asyncio.Queue[tuple[int, GeneratedToken | Finish]]",
        index: int,
    ) -> None:
        self._loop, self._received, self._index = loop, received, index

    def __call__(self, item: GeneratedToken | Finish) -> None:
        """Pass a token or the end of the reply to the event loop, unless the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(self._received.put_nowait, (self._index, item))
        except RuntimeError:
            logger.debug("A reply arrived after the end of the server.")


def _explain_failure(finish: Finish) -> ApiError:
    """Return the error for a reply that did not end in an ordinary way."""
    if finish.reason == "removed":
        return ApiError(503, "The model was unloaded while it answered.", "server_error", code="model_removed")
    if finish.reason == "cancelled":
        return ApiError(503, "The server stops.", "server_error", code="stopping")
    if finish.reason == "deadline":
        return ApiError(503, "The reply did not begin in time.", "server_error", code="deadline")
    return ApiError(503, "The reply failed because of a fault of the server.", "server_error", code="internal_error")
