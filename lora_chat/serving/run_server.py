"""The process of a server: checks before weights load, signals, and its end."""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from lora_chat.errors import InUseError
from lora_chat.serving.app import create_app, missing_key_file
from lora_chat.serving.background_messages import print_in_background
from lora_chat.serving.guards.host_guard import parse_allowed_host
from lora_chat.serving.guards.key_file import KeyFile
from lora_chat.serving.guards.origin_guard import parse_allowed_origin
from lora_chat.serving.guards.request_guard import RequestGuard, log_fault
from lora_chat.serving.http_protocol import LimitedProtocol, limited_protocol
from lora_chat.serving.judging.judge_desk import JudgeDesk
from lora_chat.serving.listen import Listener, is_loopback, open_listener, resolve_host
from lora_chat.serving.request_log import RequestLog
from lora_chat.serving.server_options import ServerOptions
from lora_chat.serving.telemetry import Telemetry
from lora_chat.system.malloc import trim_memory
from lora_chat.system.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from lora_chat.pipeline.served_models import ServedModels

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.05
_CLEANING_SECONDS = 10.0
_END_SECONDS = 3.0
"""Seconds in which replies that were ended after the grace period can still be sent."""


@dataclass(frozen=True)
class PreparedServer:
    """Everything about a server that can be wrong before weights load."""

    options: ServerOptions
    listener: Listener
    keys: KeyFile | None
    log: RequestLog

    def close(self) -> None:
        """Release the port and the files."""
        self.listener.close()
        self.log.close()


def prepare_server(options: ServerOptions) -> PreparedServer:
    """Check the options, read the keys and bind the port. Raise LoraChatError for the first problem."""
    for text in options.allow_hosts:
        parse_allowed_host(text)
    for text in options.allow_origins:
        parse_allowed_origin(text)
    keys = KeyFile(options.key_file) if options.key_file is not None else None
    addresses = resolve_host(options.host, options.port)
    if keys is None and not is_loopback(addresses):
        raise missing_key_file(options.host)
    listener = open_listener(options.host, options.port, addresses)
    try:
        log = RequestLog(options.log_content)
    except BaseException:
        listener.close()
        raise
    if not listener.is_loopback:
        logger.warning(
            f"Other machines reach {options.host} over plain HTTP, so keys and texts can be read on their way. "
            "Put a proxy with TLS before it; docs/serving.md shows one."
        )
    return PreparedServer(replace(options, port=listener.port), listener, keys, log)


def run_server(
    models: "ServedModels",
    prepared: PreparedServer,
    announce: "Callable[[], None]",
    judging: JudgeDesk | None = None,
) -> bool:
    """Answer requests until a signal ends the process; `announce` is called when the server answers.

    `judging` takes the votes of people. Return whether all messages were printed; otherwise nobody reads them, and a
    thread that waits for that would keep the process from ending.
    """
    options, listener = prepared.options, prepared.listener
    telemetry = Telemetry(models.generator, options)
    guard = create_app(models, options, prepared.keys, prepared.log, telemetry, judging)
    server = _Server(configure(guard, options, telemetry), models, guard, telemetry, announce)
    _forward_messages()
    listener.make_reusable()
    with _frozen_objects(), print_in_background() as printer:
        try:
            server.run(sockets=list(listener.sockets))
        except OSError as error:
            raise InUseError(f"Port {listener.port} is in use. Fix: --port 0 for a free one.") from error
        finally:
            models.close(0)
            prepared.close()
    return not printer.is_stuck


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """Leave the objects of the libraries and models out of garbage collections during the block.

    A full collection would visit them and stop all replies for up to a second, and Python therefore collects rarely,
    so that the buffers of refused requests would stay.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _return_memory() -> None:
    """Return freed memory to the system from time to time, because buffers of different lengths leave holes."""
    while True:
        await asyncio.sleep(_CLEANING_SECONDS)
        gc.collect()  # visits only objects of requests, because the others are frozen
        await asyncio.to_thread(trim_memory)


def configure(guard: RequestGuard, options: ServerOptions, telemetry: Telemetry) -> uvicorn.Config:
    """Return uvicorn's settings: HTTP/1.1 with limits, no web sockets, no headers of proxies, no messages."""
    return uvicorn.Config(
        guard,
        http=limited_protocol(options, telemetry),
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        h11_max_incomplete_event_size=options.max_header_bytes,
        timeout_keep_alive=options.idle_seconds,  # type: ignore[arg-type]  # call_later accepts fractions
    )


class _Server(uvicorn.Server):
    """Uvicorn's server, with this program's signals and its order of ending."""

    def __init__(
        self,
        config: uvicorn.Config,
        models: "ServedModels",
        guard: RequestGuard,
        telemetry: Telemetry,
        announce: "Callable[[], None]",
    ) -> None:
        super().__init__(config)
        self._models, self._guard, self._telemetry, self._announce = models, guard, telemetry, announce

    async def startup(self, sockets: "list[socket] | None" = None) -> None:
        """Listen, and announce it."""
        asyncio.get_running_loop().set_exception_handler(self._report_fault)
        await super().startup(sockets)
        self._telemetry.connections = self._count_connections
        self._cleaning = asyncio.ensure_future(_return_memory())
        self._announce()

    async def shutdown(self, sockets: "list[socket] | None" = None) -> None:
        """Stop to listen, let replies finish, end those that are too long, and close the connections."""
        self._guard.is_stopping = True
        self._cleaning.cancel()
        logger.info("Stopping: running replies may finish. Send the signal again to stop at once.")
        for server in self.servers:
            server.close()
        for bound in sockets or []:
            bound.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if not await self._wait_for_answers(self._guard.options.grace_seconds):
            logger.info("The grace period is over: the replies that are left end now.")
            await asyncio.to_thread(self._models.close, 0.0)
            await self._wait_for_answers(_END_SECONDS)
        for connection in list(self.server_state.connections):
            if isinstance(connection, LimitedProtocol):
                connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        await self._wait_for_answers(_TICK_SECONDS)

    async def _wait_for_answers(self, seconds: float) -> bool:
        """Wait until all requests are answered and their connections closed. Return whether that happened in time."""
        end = time.monotonic() + seconds
        while self.server_state.connections or self.server_state.tasks:
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(_TICK_SECONDS)
        return True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs: the first one ends it in order, the second one at once."""
        before = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or end the process at once."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True  # no message here, because the handler may interrupt the queue of messages

    def _count_connections(self) -> int:
        return len(self.server_state.connections)

    def _report_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Log a fault outside of any request without its text."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._telemetry.count_fault(type(error).__name__)
            log_fault(error)


def _forward_messages() -> None:
    """Send uvicorn's errors through the package's messages, and leave out the rest, which request lines contain."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio"):
        library = logging.getLogger(name)
        library.handlers[:] = [_Forwarding()]
        library.propagate = False
        library.setLevel(logging.ERROR)


class _Forwarding(logging.Handler):
    """A handler that repeats a library's error without its traceback, which may quote a request."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the first line of a message."""
        if not record.getMessage().startswith("ASGI callable returned without"):  # a client that left
            logger.error(f"{record.name}: {record.getMessage().strip().splitlines()[0][:200]}")
