"""A server with the page and scripted replies, for tests in a browser."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lora_chat.serving.openai.chat_request import ChatRequest
from lora_chat.serving.openai.request_body import parse_body
from lora_chat.serving.openai.tokenize import TokenizeRequest
from lora_chat.serving.page_routes import ROUTES

HOSTILE_NAME = "<script>alert(1)</script>\u202egnp.exe"
CHECKS = [
    {"name": "parcel", "passed": True, "detail": "every digest agrees"},
    {"name": "template", "passed": True, "detail": "bound by digest"},
    {"name": "reference", "passed": True, "detail": "KL 1.2e-08"},
]

OPEN_CHECKS = [*CHECKS, {"name": "effect", "passed": None, "detail": "too small to be seen"}]


def split_words(text: str) -> list[str]:
    """Return a text as pieces that begin with a blank, as tokens do."""
    pieces = text.split(" ")
    return [pieces[0], *(" " + piece for piece in pieces[1:])]


class ScriptedServer:
    """Scripted replies by the text of the last question; every request is kept."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.replies: dict[str, str] = {}
        self.delay = 0.0
        self.status: tuple[int, dict, dict] | None = None
        self.models = ["base", "cats", HOSTILE_NAME]
        self.stopped = 0
        self.break_after: int | None = None
        self.refuses_logprobs = False

    def reply_to(self, body: dict) -> str:
        question = body["messages"][-1]["content"]
        if question in self.replies:
            return self.replies[question]
        return f"{'A cat' if body['model'] == 'cats' else 'The base'} answers: {question[:200]}"

    async def models_route(self, request: Request) -> Response:
        rows = [
            {
                "id": name, "object": "model", "created": 1, "owned_by": "lora-chat",
                "checks": {"base": [], HOSTILE_NAME: OPEN_CHECKS}.get(name, CHECKS), "context_length": 2048,
                "system": "You are a cat." if name == "cats" else "",
            }
            for name in self.models
        ]  # fmt: skip
        refused = {"bad<img src=x onerror=alert(1)>": "the chat template differs from the template of training"}
        return JSONResponse({"object": "list", "data": rows, "refused": refused})

    async def tokenize_route(self, request: Request) -> Response:
        parse_body(await request.body(), TokenizeRequest)
        body = await request.json()
        text = "\n".join(f"<|{message['role']}|>{message['content']}" for message in body["messages"])
        tokens = [{"id": number + 10, "text": piece} for number, piece in enumerate(split_words(text))]
        return JSONResponse({"count": len(tokens), "max_model_len": 2048, "tokens": tokens})

    async def chat_route(self, request: Request) -> Response:
        # A field or a value that the real server would refuse is refused here too.
        parse_body(await request.body(), ChatRequest)
        body = await request.json()
        self.requests.append(body)
        if self.status is not None:
            status, content, headers = self.status
            return JSONResponse(content, status_code=status, headers=headers)
        if self.refuses_logprobs and "logprobs" in body:
            error = {"message": "logprobs would show the unfiltered text", "type": "invalid_request_error"}
            return JSONResponse({"error": {**error, "param": "logprobs", "code": None}}, 400)
        return StreamingResponse(self.stream(body, request), media_type="text/event-stream")

    async def stream(self, body: dict, request: Request):
        def event(delta: dict, finish: str | None = None, logprobs: dict | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
            return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

        try:
            yield event({"role": "assistant", "content": ""})
            text = self.reply_to(body)
            if text.startswith("REASON"):
                yield event({"reasoning_content": "I think about "})
                yield event({"reasoning_content": "cats."})
                text = text[6:]
            if text.startswith("CALL"):
                call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
                yield event({"tool_calls": [call]})
                yield event({"tool_calls": [{"index": 0, "function": {"arguments": '{"at": "cat"}'}}]})
                yield event({}, "tool_calls")
                yield "data: [DONE]\n\n"
                return
            for number, piece in enumerate(split_words(text)):
                if number == self.break_after:
                    raise RuntimeError("the connection breaks")
                logprobs = None
                if body.get("logprobs"):
                    own = {
                        "token": piece,
                        "logprob": (-0.05, -0.4, -1.2, -2.3)[number % 4],
                        "bytes": list(piece.encode()),
                    }
                    other = {"token": " <b>other</b>", "logprob": -3.0, "bytes": []}
                    logprobs = {"content": [{**own, "top_logprobs": [own, other]}]}
                yield event({"content": piece}, None, logprobs)
                if self.delay:
                    await asyncio.sleep(self.delay)
            yield event({}, "stop")
            if body.get("stream_options"):
                usage = {"prompt_tokens": 5, "completion_tokens": len(split_words(text)), "total_tokens": 5}
                yield f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise

    def build_app(self) -> Starlette:
        async def health(request: Request) -> Response:
            return JSONResponse({"status": "ok"})

        async def judge(request: Request) -> Response:
            return JSONResponse({"available": False, "reason": "nothing to judge in this test"})

        return Starlette(
            routes=[
                Route("/judge/state", judge),
                *ROUTES,
                Route("/health", health),
                Route("/v1/models", self.models_route),
                Route("/v1/tokenize", self.tokenize_route, methods=["POST"]),
                Route("/v1/chat/completions", self.chat_route, methods=["POST"]),
            ]
        )


class RunningServer:
    """A server of an app on a free port of this computer, in a thread."""

    def __init__(self, app: Starlette | Callable[[int], Starlette], port: int = 0) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        self.port = listener.getsockname()[1]
        app = app if isinstance(app, Starlette) else app(self.port)
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=0)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def close(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(10)
