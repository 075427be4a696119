"""HTTP/1.1 on one connection: uvicorn's protocol over h11, with limits of time, size and number."""

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.guards.answer_headers import SECURITY_HEADERS
from lora_chat.serving.listen import parse_address

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from lora_chat.serving.server_options import ServerOptions
    from lora_chat.serving.telemetry import Telemetry

_MAX_WAITING_BYTES = 2**16
"""Bytes of later requests that are kept while one is answered; a client that sends more is not read any further."""
_DISCARDED_BODIES = 2
"""Length of a refused body that is read and dropped, in largest bodies, so that the client sees the answer."""
_FREE_CHUNKS, _MIN_CHUNK_BYTES = 256, 64
"""Number of chunks of any length in a body, and the smallest mean length of more, because each chunk costs time."""
_LATE_SECONDS = 0.05
_MALFORMED = {431: "The headers are too long.", 400: "The request is not valid HTTP."}


class _Parser(h11.Connection):
    """A parser of requests that refuses bodies in very many tiny chunks."""

    _chunks = _bytes = 0

    def next_event(self) -> "h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]":
        """Return the next part of a request. Raise RemoteProtocolError for a malformed one."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks, self._bytes = self._chunks + 1, self._bytes + len(event.data)
            if self._chunks > _FREE_CHUNKS and self._bytes < self._chunks * _MIN_CHUNK_BYTES:
                raise h11.RemoteProtocolError("too many tiny chunks")
        return event


class LimitedProtocol(H11Protocol):
    """A connection that ends if its client is too slow, sends too much, or is one too many."""

    options: "ServerOptions"
    telemetry: "Telemetry"

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _Parser(h11.SERVER, self.options.max_header_bytes)
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._waiting_bytes = self._discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, or refuse a connection that is one too many."""
        super().connection_made(transport)
        if len(self.connections) > self.options.max_connections or self._has_too_many():
            self._refuse(503, "Too many connections are open.", "too_many_connections")
            return
        self._wait(self.options.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Receive bytes of a request, of a refused body, or of a request that waits for its turn."""
        if self.transport.is_closing():
            return
        if self._is_busy and self.conn.their_state is h11.DONE:
            self._waiting_bytes += len(data)
            if self._waiting_bytes > _MAX_WAITING_BYTES:
                self.flow.pause_reading()
        elif not self._is_busy and self.conn.their_state is h11.SEND_BODY:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _DISCARDED_BODIES * self.options.max_body_bytes:
                self.transport.abort()
                return
        elif self.conn.their_state is h11.IDLE and self._timer is None:
            self._wait(self.options.header_seconds)
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # the client broke the protocol while its answer was sent
            self.transport.abort()

    def handle_events(self) -> None:
        """Handle complete parts of requests, and go on reading while a request is answered, to see its client leave."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()
        if self._is_busy and self._waiting_bytes <= _MAX_WAITING_BYTES and self.conn.their_state is h11.DONE:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Wait for the rest of a refused body for a short time, or for the next request."""
        self._waiting_bytes = self._discarded_bytes = 0
        if self.conn.their_state is h11.SEND_BODY:
            self._wait(self.options.header_seconds)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.options.write_seconds, self._abort_slow_reader)

    def resume_writing(self) -> None:
        """Continue to write."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if its client never reads the rest of the last answer."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.options.write_seconds, self.transport.abort)

    def shutdown(self) -> None:
        """Close an idle connection, or let the answer finish."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not valid HTTP, in the form of the other errors, and close the connection."""
        error = sys.exc_info()[1]
        hint = getattr(error, "error_status_hint", 400)
        status = hint if hint in _MALFORMED else 400
        if self._is_busy and self.cycle.response_started:
            self.transport.abort()
            return
        self._refuse(status, _MALFORMED[status], "malformed_request")

    def _should_upgrade(self) -> bool:
        """Return False, because there are no web sockets."""
        return False

    def _has_too_many(self) -> bool:
        """Return whether one other machine has more than half of all connections, which would exclude the rest."""
        address = self.client[0] if self.client else ""
        parsed = parse_address(address)
        if parsed is None or parsed.is_loopback:
            return False
        addresses = [other.client[0] for other in self.connections if isinstance(other, H11Protocol) and other.client]
        return addresses.count(address) > self.options.max_connections // 2

    @property
    def _is_busy(self) -> bool:
        """Return whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self, seconds: float) -> None:
        """Close the connection after some seconds unless a request is complete before."""
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        """Read what has arrived before the client is called slow, because this process itself may have been late."""
        self._timer = self.loop.call_later(_LATE_SECONDS, self._end_slow_sender)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_slow_sender(self) -> None:
        self._timer = None
        if self._is_busy or self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, "The headers took too long.", "header_timeout")
        else:
            self.transport.abort()

    def _abort_slow_reader(self) -> None:
        self._write_timer = None
        self.telemetry.count_refused("slow_reader")
        self.transport.abort()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Send an error without the application, and close the connection."""
        self.telemetry.count_refused(code)
        self._stop_waiting()
        if self.cycle is not None:
            self.cycle.disconnected = True
        body = json.dumps(ApiError(status, message, code=code).as_dict()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *([(b"retry-after", b"1")] if status == 503 else []),
            *SECURITY_HEADERS,
        ]
        lines = [b"HTTP/1.1 %d %s" % (status, STATUS_PHRASES[status]), *(b": ".join(pair) for pair in headers)]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()
        self.loop.call_later(self.options.write_seconds, self.transport.abort)


def limited_protocol(options: "ServerOptions", telemetry: "Telemetry") -> type[LimitedProtocol]:
    """Return the class of connections with these limits, because uvicorn makes the connections itself."""
    return cast(
        "type[LimitedProtocol]", type("Connection", (LimitedProtocol,), {"options": options, "telemetry": telemetry})
    )
