"""Requests with any change: none is answered with anything else than 200 or 4xx, and no fault is counted."""

import asyncio
import json
import os
from collections import Counter
from copy import deepcopy

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_chat.serving.app import create_app
from lora_chat.serving.telemetry import Telemetry

_COUNT = 10_000 if os.environ.get("LORA_CHAT_ALL_BASES") else 80
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


ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=4,
)
VALUE = st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), ANY)
KEY = st.one_of(st.sampled_from(KEYS), st.text(max_size=5))
CHANGE = st.tuples(
    st.sampled_from(("text", "text", "set", "set", "add", "delete")), st.integers(0, 99), st.integers(0, 9), KEY, VALUE
)
JUNK = st.sampled_from((b"", b"\xff", b"{", b'"', b"NaN", b"1e999", b"[" * 150, b"\\ud800", b"\x00"))
REQUEST = st.tuples(
    st.sampled_from(REQUESTS),
    st.lists(CHANGE, max_size=3),
    st.one_of(st.none(), st.none(), st.none(), st.tuples(st.integers(0, 400), st.integers(0, 3), JUNK)),
)


def _containers(value):
    """Return all lists and objects in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [*([value] if isinstance(value, dict | list) else ()), *(c for item in inner for c in _containers(item))]


def _change(body, action, container, position, key, value):
    """Change one text, set, add or delete one value of a body, wherever it is."""
    containers = _containers(body)
    target, value = containers[container % len(containers)], deepcopy(value)
    keys = list(target) if isinstance(target, dict) else list(range(len(target)))
    if action == "text":
        keys = [
            name for name in keys if name in ("content", "text", "prompt", "description", "stop", "reasoning_content")
        ]
        value = value if isinstance(value, str) else json.dumps(value)
    if action == "add" and isinstance(target, dict):
        target[key] = value
    elif action == "add":
        target.insert(position, value)
    elif keys and action == "delete":
        del target[keys[position % len(keys)]]
    elif keys:
        target[keys[position % len(keys)]] = value


def _write(body, changes, junk):
    """Return the bytes of a body after changes; with `junk`, some bytes are replaced."""
    body = deepcopy(body)
    for change in changes:
        _change(body, *change)
    content = json.dumps(body, ensure_ascii=len(changes) != 1).encode("utf-8", "surrogatepass")
    if junk is None:
        return content
    begin, length, replacement = junk
    return content[:begin] + replacement + content[begin + length :]


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


def test_requests_with_any_change_are_answered(models, generator, server_options):
    generator.replies = ["<think>a</think> I see. " + '<tool_call>{"name": "f", "arguments": {}}</tool_call>']
    telemetry = Telemetry(generator, server_options)
    app, loop, statuses = create_app(models, server_options, telemetry=telemetry), asyncio.new_event_loop(), Counter()

    @settings(
        max_examples=_COUNT, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(REQUEST)
    def ask(request):
        (path, body), changes, junk = request
        status, answer = loop.run_until_complete(asyncio.wait_for(_send(app, path, _write(body, changes, junk)), 20))
        statuses[status] += 1
        generator.tickets.clear()
        assert status == 200 or 400 <= status < 500
        assert status == 200 or json.loads(answer)["error"]["message"]

    try:
        ask()
    finally:
        loop.close()
    print(statuses)
    assert statuses[200] > _COUNT / 10
    assert statuses[400] > _COUNT / 10
    assert b"lora_chat_faults_total{" not in telemetry.export("text/plain")[0]
