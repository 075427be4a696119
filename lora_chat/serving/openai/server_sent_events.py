"""Answers as server-sent events, in the form that OpenAI's clients read."""

import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from lora_chat.serving.api_errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_DONE = "data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(StreamingResponse):
    """A stream of JSON objects that ends with `[DONE]`, or with an error."""

    def __init__(self, events: AsyncIterator[dict[str, object]], close: Callable[[], None]) -> None:
        """Prepare the stream; `close` is called at its end, also if the client leaves before the first event."""
        super().__init__(_format_events(events), media_type="text/event-stream", headers=_HEADERS)
        self._close = close

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _format_events(events: AsyncIterator[dict[str, object]]) -> AsyncIterator[str]:
    """Yield the text of each event; an error in the middle becomes the last event."""
    try:
        async for event in events:
            yield format_event(event)
        yield _DONE
    except ApiError as error:
        yield format_event(error.as_dict())


def format_event(event: dict[str, object]) -> str:
    """Return an object as one event. JSON text in ASCII has no line ends."""
    return f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
