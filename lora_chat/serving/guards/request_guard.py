"""All checks of a request, in order, around the application: who asks, from where, how much, and how long.

No check reads the body before those of the headers passed, and the application gets only whole bodies within limits.
"""

import asyncio
import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response

from lora_chat.serving.api_errors import ApiError, internal_error
from lora_chat.serving.guards.answer_headers import complete_headers
from lora_chat.serving.guards.body_guard import ClientGoneError, check_body_headers, read_body
from lora_chat.serving.guards.host_guard import check_host, parse_allowed_host
from lora_chat.serving.guards.key_guard import KeyGuard
from lora_chat.serving.guards.origin_guard import (
    READING_METHODS,
    check_origin,
    cors_headers,
    parse_allowed_origin,
    preflight_headers,
)
from lora_chat.serving.guards.request_headers import read_headers
from lora_chat.serving.request_record import RequestRecord, start_record
from lora_chat.serving.telemetry import KNOWN_PATH, METHODS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lora_chat.serving.guards.key_file import KeyFile
    from lora_chat.serving.request_log import ContentCopy, RequestLog
    from lora_chat.serving.server_options import ServerOptions
    from lora_chat.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)

_EXTRA_SECONDS = 15.0
"""Seconds after the deadline of a reply in which its route can still answer."""


class RequestGuard:
    """The checks around an application, as an ASGI application."""

    def __init__(
        self,
        app: "ASGIApp",
        options: "ServerOptions",
        keys: "KeyFile | None",
        telemetry: "Telemetry",
        log: "RequestLog",
    ) -> None:
        self.app, self.options, self._telemetry, self._log = app, options, telemetry, log
        self._keys = KeyGuard(keys) if keys is not None else None
        self._hosts = tuple(map(parse_allowed_host, options.allow_hosts))
        self._origins = tuple(map(parse_allowed_origin, options.allow_origins))
        self._paths = frozenset(route.path for route in getattr(app, "routes", ()))
        self._working = 0
        self.is_stopping = False
        """Whether new requests are refused, because the server stops."""

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Check and answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        record = start_record(scope)
        if scope["path"] in self._paths:
            scope[KNOWN_PATH] = scope["path"]
        answer = _Answer(send)
        body: list[bytes] = []
        self._telemetry.begin()
        try:
            await self._answer(scope, receive, answer, record, body)
        except ClientGoneError:
            record.refused = "client_gone"
        except Exception as error:
            log_fault(error)
            self._telemetry.count_fault(type(error).__name__)
            if not answer.status:
                await _respond(internal_error().as_response(), scope, answer)
        finally:
            self._telemetry.end(scope, record, answer.status)
            self._log.write(scope, record, answer.status)
            if body and answer.copy is not None:
                self._log.write_content(scope, body[0], answer.copy)

    async def _answer(
        self, scope: "Scope", receive: "Receive", answer: "_Answer", record: RequestRecord, body: list[bytes]
    ) -> None:
        try:
            headers = read_headers(scope, self.options.max_header_bytes)
            answer.further = cors_headers(headers, self._origins)
            await self._check(scope, headers)
        except ApiError as error:
            await self._refuse(error, scope, answer, record)
            return
        if scope["method"] == "OPTIONS":
            await _respond(Response(status_code=204, headers=preflight_headers(headers, self._origins)), scope, answer)
            return
        if scope["method"] in READING_METHODS:
            await _Exchange(b"", receive).run(self.app, scope, answer)
            return
        if self._working >= self.options.max_requests:
            await self._refuse(_busy(), scope, answer, record)
            return
        self._working += 1
        try:
            body.append(await read_body(receive, self.options.max_body_bytes, self.options.body_seconds))
            if not body[0] and _needs_body(scope["method"]):
                raise ApiError(400, "The request has no body.", code="no_body")
            exchange = _Exchange(body[0], receive)
            answer.copy = self._log.start_copy()
            await asyncio.wait_for(exchange.run(self.app, scope, answer), self.options.request_seconds + _EXTRA_SECONDS)
        except ApiError as error:
            await self._refuse(error, scope, answer, record)
        except asyncio.TimeoutError:
            record.refused = "deadline"
            if not answer.status:
                late = ApiError(503, "The reply took too long.", "server_error", code="deadline")
                await self._refuse(late, scope, answer, record)
        finally:
            self._working -= 1

    async def _check(self, scope: "Scope", headers: Mapping[bytes, str]) -> None:
        """Raise ApiError for a request that its method, headers or address excludes."""
        method = scope["method"]
        if method not in METHODS:
            raise ApiError(
                405, "The server does not have this method.", code="bad_method", headers={"allow": "GET, HEAD, POST"}
            )
        check_host(headers.get(b"host"), scope.get("server"), self.options.host, self._hosts)
        check_origin(method, headers, self._origins)
        if method == "OPTIONS":
            if preflight_headers(headers, self._origins) is None:
                raise ApiError(
                    405,
                    "The server does not have this method.",
                    code="bad_method",
                    headers={"allow": "GET, HEAD, POST"},
                )
            return
        if self._keys is not None:
            client = scope.get("client")
            await self._keys.check(scope["path"], headers, client[0] if client else "")
        if self.is_stopping and scope["path"] != "/health":
            raise ApiError(503, "The server stops.", "server_error", code="stopping")
        check_body_headers(method, headers, self.options.max_body_bytes)

    async def _refuse(self, error: ApiError, scope: "Scope", answer: "_Answer", record: RequestRecord) -> None:
        record.refused = error.code or "bad_request"
        await _respond(error.as_response(self._telemetry.retry_seconds()), scope, answer)


class _Answer:
    """The way to the client: completes the headers and remembers the status."""

    def __init__(self, send: "Send") -> None:
        self._send = send
        self.status = 0
        """Status that was sent, or 0."""
        self.is_complete = False
        self.further: list[tuple[bytes, bytes]] = []
        self.copy: ContentCopy | None = None
        """Copy of the body for the log of content, if there is one."""

    async def __call__(self, message: "Message") -> None:
        """Send one message of the application."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": complete_headers(message.get("headers", ()), self.further)}
        else:
            self.is_complete = not message.get("more_body", False)
            if self.copy is not None:
                self.copy.add(message.get("body", b""))
        await self._send(message)


class _Exchange:
    """One request whose body was read: the application runs until it is done or the client is gone."""

    def __init__(self, body: bytes, receive: "Receive") -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._gone = asyncio.Event()

    async def run(self, app: "ASGIApp", scope: "Scope", send: _Answer) -> None:
        """Run the application, and cancel it when the client closes its connection. Raise ClientGoneError then."""
        work = asyncio.ensure_future(app(scope, self._give, send))
        watch = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not send.is_complete:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise ClientGoneError
            await work
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _give(self) -> "Message":
        """Give the body to the application, and after it only the end of the connection."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _watch(self) -> None:
        """Return when the client is gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()


async def _respond(response: Response, scope: "Scope", send: "Send") -> None:
    async def receive() -> "Message":
        return {"type": "http.disconnect"}

    await response(scope, receive, send)


def _busy() -> ApiError:
    return ApiError(429, "Too many requests are answered or wait.", "rate_limit_error", code="busy")


def _needs_body(method: str) -> bool:
    return method == "POST"


def log_fault(error: Exception) -> None:
    """Log where a fault happened, without its text, because that may quote a request."""
    while inner := getattr(error, "exceptions", None):  # a group of errors of tasks
        error = inner[0]
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    path = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    logger.error(f"A fault of the server: {type(error).__name__} at {path}")
