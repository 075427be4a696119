"""What the clients of the load test do: honest requests, slow ones, rude ones and wrong ones."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from raw_client import TIMEOUT_SECONDS, Answer, Connection, ask, format_chat, format_request

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How many legs does a spider have?",
    "Name three colours.",
    "Who wrote Hamlet?",
    "Explain rain to a child.",
)
NEW_TOKENS = 24


@dataclass
class Load:
    """What all clients share: the server, the expected replies, and everything that was counted."""

    port: int
    models: list[str]
    expected: dict[tuple[str, str], str] = field(default_factory=dict)
    """Greedy reply of each model to each question."""
    statuses: dict[str, dict[int, int]] = field(default_factory=dict)
    """Number of answers by action and status."""
    mismatches: list[str] = field(default_factory=list)
    """Greedy replies that differ from the expected ones, and streams without their end."""
    compared: int = 0
    seconds: list[float] = field(default_factory=list)
    """Times of whole replies."""
    first_text_seconds: list[float] = field(default_factory=list)
    tokens: int = 0

    def count(self, action: str, status: int) -> None:
        """Count an answer."""
        by_status = self.statuses.setdefault(action, {})
        by_status[status] = by_status.get(status, 0) + 1


def chat_body(load: Load, chance: random.Random, **more: object) -> dict[str, object]:
    """Return a request with a random model and question."""
    messages = [{"role": "user", "content": chance.choice(QUESTIONS)}]
    return {
        "model": chance.choice(load.models),
        "messages": messages,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        **more,
    }


async def ask_whole(load: Load, chance: random.Random) -> Answer:
    """Ask for a whole greedy reply and compare it."""
    body = chat_body(load, chance)
    start = asyncio.get_running_loop().time()
    answer = await ask(load.port, format_chat(load.port, body))
    if answer.status == 200:
        load.seconds.append(asyncio.get_running_loop().time() - start)
        reply = json.loads(answer.body)
        load.tokens += reply["usage"]["completion_tokens"]
        compare(load, body, reply["choices"][0]["message"]["content"])
    return answer


async def ask_stream(load: Load, chance: random.Random, pause: float = 0.0, buffer: int | None = None) -> Answer:
    """Ask for a streamed greedy reply, read it with pauses, and compare it."""
    body = chat_body(load, chance, stream=True)
    start = asyncio.get_running_loop().time()
    connection = await Connection.open(load.port, buffer)
    try:
        await connection.send(format_chat(load.port, body))
        answer = await asyncio.wait_for(connection.read_head(), TIMEOUT_SECONDS)
        pieces = 0
        async for piece in connection.read_pieces():
            pieces += 1
            if pieces == 2:  # the first one has only the role
                load.first_text_seconds.append(asyncio.get_running_loop().time() - start)
            answer.body += piece
            await asyncio.sleep(pause)
    finally:
        connection.close()
    if answer.status == 200:
        compare(load, body, read_stream(answer))
    return answer


async def read_slowly(load: Load, chance: random.Random) -> Answer:
    """Read a stream in small pieces with pauses."""
    return await ask_stream(load, chance, pause=0.1, buffer=4096)


async def sample(load: Load, chance: random.Random) -> Answer:
    """Ask for a sampled reply."""
    return await ask(
        load.port, format_chat(load.port, chat_body(load, chance, temperature=0.9, seed=chance.randrange(9)))
    )


async def leave_early(load: Load, chance: random.Random) -> Answer:
    """Leave in the middle of a request, of its wait, or of its stream."""
    data = format_chat(load.port, chat_body(load, chance, stream=chance.random() < 0.7, max_tokens=200))
    connection = await Connection.open(load.port)
    try:
        await connection.send(data[: chance.choice([len(data), len(data), len(data), 60, len(data) - 5])])
        await asyncio.sleep(chance.choice([0.0, 0.05, 0.3]))
    finally:
        connection.close()
    return Answer(-1)


async def send_too_much(load: Load, chance: random.Random) -> Answer:
    """Send a body beyond the limit, with its length or in chunks."""
    large = b'{"model": "' + b"x" * (2**21) + b'"}'
    if chance.random() < 0.5:
        return await ask(load.port, format_request(load.port, "POST", "/v1/chat/completions", large))
    head = format_request(load.port, "POST", "/v1/chat/completions", headers={"Transfer-Encoding": "chunked"})
    head = head.replace(b"Content-Length: 0\r\n", b"")
    return await ask(load.port, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large))


MALFORMED: tuple[Callable[[int], bytes], ...] = (
    lambda port: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    lambda port: b"GET / HTTP/1.1\r\n\r\n",
    lambda port: format_request(port, "POST", "/v1/chat/completions", b"{", {}),
    lambda port: format_request(port, "POST", "/v1/chat/completions", b"[" * 5000, {}),
    lambda port: format_request(port, "POST", "/v1/chat/completions", b"\xff\xfe\x00", {}),
    lambda port: format_request(port, "POST", "/v1/chat/completions", b"a=b", {"Content-Type": "text/plain"}),
    lambda port: format_request(port, "GET", "/v1/models", host="evil.example"),
    lambda port: format_request(port, "GET", "/v1/models", headers={"Origin": "http://evil.example"}),
    lambda port: format_request(port, "TRACE", "/"),
    lambda port: format_request(port, "GET", "/" + "x" * 20000),
    lambda port: format_request(port, "GET", "/../../etc/passwd"),
    lambda port: format_request(port, "POST", "/v1/chat/completions", b"{}", {"Transfer-Encoding": "gzip"}),
    lambda port: format_chat(port, {"model": "nobody", "messages": [{"role": "user", "content": "a"}]}),
    lambda port: format_chat(port, {"model": "base", "messages": [], "chat_template": "{{ 7 * 7 }}"}),
    lambda port: format_chat(port, {"model": "base", "messages": [{"role": "user", "content": "a " * 50000}]}),
    lambda port: format_chat(port, {"model": "base", "messages": [{"role": "user", "content": "a"}], "n": 10**9}),
    lambda port: format_chat(port, {"model": "base", "messages": [{"role": "user", "content": "a"}], "max_tokens": -1}),
)


async def send_malformed(load: Load, chance: random.Random) -> Answer:
    """Send something that is not a valid request."""
    return await ask(load.port, chance.choice(MALFORMED)(load.port))


async def look(load: Load, chance: random.Random) -> Answer:
    """Ask for the state of the server."""
    path = chance.choice(["/health", "/metrics", "/v1/models", "/"])
    return await ask(load.port, format_request(load.port, "GET", path))


ACTIONS: dict[Callable[[Load, random.Random], Awaitable[Answer]], int] = {
    ask_whole: 30,
    ask_stream: 25,
    read_slowly: 8,
    sample: 10,
    leave_early: 10,
    send_too_much: 3,
    send_malformed: 9,
    look: 5,
}
"""Actions with their weights."""


def read_stream(answer: Answer) -> str | None:
    """Return the text of a stream, or None if it has no proper end."""
    lines = answer.body.decode().split("\n\n")
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    if not answer.is_complete or not events or events[-1] != "[DONE]":
        return None
    texts = [
        choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event).get("choices", ())
    ]
    return "".join(texts)


def compare(load: Load, body: dict[str, object], reply: str | None) -> None:
    """Compare a greedy reply with the expected one."""
    load.compared += 1
    question = body["messages"][0]["content"]  # type: ignore[index]
    expected = load.expected[str(body["model"]), question]
    if reply is None or reply.strip() != expected:  # `chat` prints replies without space around them
        load.mismatches.append(f"{body['model']}: {question!r}: {reply!r} instead of {expected!r}")
