"""The guards around routes that need no model, and a client that calls them without a socket."""

import asyncio
import json
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from lora_chat.inference.continuous.request import BatchStatistics
from lora_chat.serving.api_errors import ERROR_HANDLERS, ApiError
from lora_chat.serving.guards.request_guard import RequestGuard
from lora_chat.serving.request_log import RequestLog
from lora_chat.serving.request_record import record_of
from lora_chat.serving.server_options import ServerOptions
from lora_chat.serving.status_routes import ROUTES
from lora_chat.serving.telemetry import Telemetry

LOCAL = ("127.0.0.1", 8000)


class ScriptedGenerator:
    is_alive = True
    ended = False

    def __init__(self, **figures):
        self.figures = figures

    def statistics(self):
        return BatchStatistics(**self.figures)

    def close(self, timeout=0.0):
        self.ended = True


class ScriptedModels:
    def __init__(self, **figures):
        self.generator = ScriptedGenerator(**figures)
        self.refused = {}

    def list(self):
        return ()

    def close(self, timeout=0.0):
        self.generator.close(timeout)


async def echo(request):
    body = await request.body()
    record = record_of(request)
    record.model, record.prompt_tokens, record.finish = "base", len(body), "stop"
    record.note_token()
    return JSONResponse({"length": len(body)})


async def fail(request):
    raise RuntimeError("secret text of a request")


async def refuse(request):
    raise ApiError(400, "No.", code="no")


async def stream(request):
    """Stream until the client leaves, the server ends it, or 2,000 pieces were sent."""
    state = request.app.state

    async def pieces():
        try:
            for number in range(2000):
                yield b"data: %d\n\n" % number + state.padding
                state.sent = number
                if state.models.generator.ended:
                    break
                await asyncio.sleep(state.pause)
            yield b"data: [DONE]\n\n"
            state.ended_in_order = True
        finally:
            state.is_finished = True

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def wait(request):
    request.app.state.is_waiting = True
    try:
        await asyncio.sleep(30)
    finally:
        request.app.state.was_cancelled = True


TEST_ROUTES = (
    Route("/echo", echo, methods=["POST", "GET"]),
    Route("/fail", fail, methods=["POST", "GET"]),
    Route("/refuse", refuse, methods=["POST"]),
    Route("/stream", stream, methods=["POST", "GET"]),
    Route("/wait", wait, methods=["POST"]),
    *ROUTES,
)


DEFAULTS = ServerOptions()


def build_app(options=DEFAULTS, keys=None, models=None, content=None):
    models = models or ScriptedModels()
    telemetry = Telemetry(models.generator, options)
    app = Starlette(routes=TEST_ROUTES, exception_handlers=ERROR_HANDLERS)
    app.router.redirect_slashes = False
    guard = RequestGuard(app, options, keys, telemetry, RequestLog(content))
    state = app.state
    state.models, state.options, state.telemetry, state.guard = models, options, telemetry, guard
    state.pause, state.padding, state.sent = 0.01, b"", 0
    state.is_finished = state.ended_in_order = state.was_cancelled = state.is_waiting = False
    guard.state = state
    return guard


@dataclass
class Answer:
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self):
        return json.loads(self.body)["error"]


def ask(
    app,
    method="GET",
    path="/health",
    headers=(),
    body=None,
    *,
    host="127.0.0.1:8000",
    server=LOCAL,
    client="127.0.0.1",
    leaves_after=None,
):
    """Return the answer to one request. `body` may be a list of pieces: a number waits, None is a client that left."""
    pieces = body if isinstance(body, list) else [body or b""]
    fields = [(b"host", host.encode())] if host is not None else []
    if body is not None and not any(name == "content-type" for name, _ in headers):
        fields.append((b"content-type", b"application/json"))
    if isinstance(body, list):
        fields.append((b"transfer-encoding", b"chunked"))
    elif body:
        fields.append((b"content-length", str(len(body)).encode()))
    fields += [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": fields,
        "server": server,
        "client": (client, 50000),
        "scheme": "http",
        "http_version": "1.1",
    }
    answer = Answer()
    waiting = list(pieces)

    async def run():
        done = asyncio.Event()

        async def receive():
            if not waiting:
                await (done.wait() if leaves_after is None else asyncio.sleep(leaves_after))
                return {"type": "http.disconnect"}
            piece = waiting.pop(0)
            if piece is None:
                return {"type": "http.disconnect"}
            if isinstance(piece, float):
                await asyncio.sleep(piece)
                piece = b""
            return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

        async def send(message):
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message.get("body", b"")
                if not message.get("more_body"):
                    done.set()

        await app(scope, receive, send)

    asyncio.run(run())
    return answer
