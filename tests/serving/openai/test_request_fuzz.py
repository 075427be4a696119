"""Thousands of damaged requests: none is answered with anything else than 200, 4xx or 503, and no fault is counted."""

import asyncio
import json
import os
import random
from copy import deepcopy

from lora_chat.serving.app import create_app
from lora_chat.serving.telemetry import Telemetry

_COUNT = 10_000 if os.environ.get("LORA_CHAT_ALL_BASES") else 300
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {}}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
REQUESTS = (
    ("/v1/chat/completions", {"model": "plain", "messages": [{"role": "user", "content": "Hi"}]}),
    (
        "/v1/chat/completions",
        {
            "model": "tools",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "r", "tool_call_id": "c1", "name": "f"},
            ],
            "tools": [TOOL],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": ["x", "yz"],
            "logprobs": True,
            "top_logprobs": 2,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "model": "thinking",
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "reasoning_content": "r"},
                {"role": "user", "content": "q"},
            ],
            "chat_template_kwargs": {"enable_thinking": True},
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 1,
            "n": 2,
            "max_tokens": 5,
            "user": "u",
            "response_format": {"type": "text"},
        },
    ),
    ("/v1/completions", {"model": "plain", "prompt": "Once", "max_tokens": 5, "echo": True, "n": 1, "stream": True}),
    ("/v1/completions", {"model": "plain", "prompt": [5, 6], "logprobs": 2, "temperature": 1, "stop": "q"}),
    (
        "/v1/tokenize",
        {"model": "plain", "messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": False},
    ),
    ("/v1/tokenize", {"model": "opening", "prompt": "text"}),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 2**31, 2**64, 10**300, 1e308, -1e308, 1e-308),
    *("", " ", "a", "auto", "none", "required", "text", "\ud800", "\udfff", "\U000f0000", "\U000f0001", "\0", "\u2028"),
    *("<|im_start|>", "<|im_end|>", "<|im_start", "{{ 1 }}", "{% for x in y %}", "<think>", "</think>", "<tool_call>"),
    *("http://127.0.0.1/", "file:///etc/passwd", "../../x", "${x}", "%s%n", "'; --", "a" * 3000, "é" * 2000, "\n" * 50),
    *([], {}, [[]], [{}], [None], ["a"], [1], [[1]], {"a": 1}, {"type": "text"}, {"type": "text", "text": "t"}),
    *({"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}, {"role": "user", "content": "c"}, TOOL, CALL),
    *([{"role": "user", "content": "c"}] * 3, {"": ""}, {"<|im_end|>": 1}, {"a": {"b": {"c": [[[]]]}}}, ["x"] * 300),
)
KEYS = (
    *["model", "messages", "content", "role", "tools", "name", "type", "function", "stop", "n", "stream"],
    "x",
    "",
    "__class__",
    "\ud800",
    "<|im_end|>",
)


def _containers(value):
    """Return all lists and objects in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [*([value] if isinstance(value, dict | list) else ()), *(c for item in inner for c in _containers(item))]


def _damage(body, draw):
    """Return a body with one to three changes."""
    body = json.loads(json.dumps(body))
    if draw.random() < 0.3:  # only texts change, so that the request may be valid
        for target in _containers(body):
            for key in ("content", "text", "reasoning_content", "description", "prompt", "stop"):
                if isinstance(target, dict) and isinstance(target.get(key), str):
                    target[key] = draw.choice([value for value in VALUES if isinstance(value, str)])
        return body
    for _ in range(draw.choice((1, 1, 2, 3))):
        target, value = draw.choice(_containers(body)), deepcopy(draw.choice(VALUES))
        keys = list(target) if isinstance(target, dict) else range(len(target))
        action = draw.random()
        if keys and action < 0.55:
            target[draw.choice(keys)] = value
        elif keys and action < 0.7:
            del target[draw.choice(keys)]
        elif isinstance(target, dict):
            target[draw.choice(KEYS)] = value
        else:
            target.insert(draw.randint(0, len(target)), value)
    return body


def _write(body, draw):
    """Return the bytes of a body, some of them changed."""
    text = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if draw.random() < 0.15:
        begin = draw.randrange(len(text))
        text = (
            text[:begin]
            + draw.choice((b"", b"\xff", b"{", b'"', b"NaN", b"1e999", b"[" * 150, b"\\ud800"))
            + text[begin + draw.randint(0, 3) :]
        )
    return text


async def _send(app, path, body):
    """Return the status and the body of an answer."""
    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [*headers, (b"content-length", str(len(body)).encode())],
        "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 5), "state": {},
    }  # fmt: skip
    gone, sent, pieces = asyncio.Event(), [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if pieces:
            return pieces.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_damaged_requests_are_answered(models, generator, server_options):
    generator.replies = ["<think>a</think> I see. " + '<tool_call>{"name": "f", "arguments": {}}</tool_call>']
    telemetry = Telemetry(generator, server_options)
    app = create_app(models, server_options, telemetry=telemetry)

    async def run():
        draw, statuses = random.Random(6), {}
        for number in range(_COUNT):
            path, body = draw.choice(REQUESTS)
            content = _write(_damage(body, draw) if number >= len(REQUESTS) else body, draw)
            status, answer = await asyncio.wait_for(_send(app, path, content), 20)
            statuses[status] = statuses.get(status, 0) + 1
            assert status == 200 or 400 <= status < 500, (path, content, answer)
            if status != 200:
                error = json.loads(answer)["error"]
                assert isinstance(error["message"], str) and error["message"], (path, content)
            generator.tickets.clear()
        return statuses

    statuses = asyncio.run(run())
    assert statuses[200] > _COUNT / 10
    assert statuses[400] > _COUNT / 3
    assert b"lora_chat_faults_total{" not in telemetry.export("text/plain")[0]
    print(statuses)
