"""Random requests to a real server over its socket: every answer is 200, 4xx, 429 or 503, and the server survives.

python benchmarks/serving/fuzz.py THING... [--requests 10000] [--json FILE]

Hypothesis makes requests of four kinds: almost valid bodies with strange fields, random JSON, random bytes as body, and
random bytes as HTTP. Exits with 1 for any other status, a fault of the server, or an exit code other than 0.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import sys
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from raw_client import Answer, ask, format_chat, format_request
from server_process import ServerProcess

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/models", "/health", "/metrics", "/", "/judge")
METHODS = ("POST", "POST", "POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
SMALL_NUMBERS = st.integers(-2, 40) | st.floats(-1, 3, allow_nan=False) | JSON_VALUES
TEXTS = st.text(max_size=200) | st.text(st.characters(exclude_categories=()), max_size=20)
CONTENTS = TEXTS | JSON_VALUES
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", "developer", "root"]), "content": CONTENTS},
        optional={"name": CONTENTS, "tool_calls": JSON_VALUES, "tool_call_id": CONTENTS, "reasoning_content": CONTENTS},
    ),
    max_size=4,
)
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "max_tokens": st.integers(1, 6) | SMALL_NUMBERS,
    "max_completion_tokens": SMALL_NUMBERS,
    "temperature": SMALL_NUMBERS,
    "top_p": SMALL_NUMBERS,
    "seed": st.integers() | SMALL_NUMBERS,
    "n": SMALL_NUMBERS,
    "stop": st.text(max_size=8) | st.lists(st.text(max_size=8), max_size=6) | JSON_VALUES,
    "stream": st.booleans() | JSON_VALUES,
    "stream_options": st.just({"include_usage": True}) | JSON_VALUES,
    "logprobs": st.booleans() | SMALL_NUMBERS,
    "top_logprobs": SMALL_NUMBERS,
    "tools": JSON_VALUES,
    "tool_choice": st.sampled_from(["auto", "none", "required"]) | JSON_VALUES,
    "response_format": JSON_VALUES,
    "chat_template": st.just("{{ 7 * 7 }}"),
    "prompt_embeds": st.text(max_size=20),
    "user": CONTENTS,
    "": JSON_VALUES,
}
HEADER_NAMES = st.sampled_from(
    ["Content-Type", "Origin", "Host", "Expect", "Accept", "Content-Encoding", "Transfer-Encoding", "Upgrade", "X-Odd"]
)
HEADER_TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30) | st.sampled_from(
    ["chunked", "gzip", "100-continue", "application/json", "null", "localhost", "websocket", "text/plain"]
)


def almost_valid(port: int, models: list[str]) -> st.SearchStrategy[bytes]:
    """Return requests for replies with a few strange fields."""
    valid = st.fixed_dictionaries(
        {
            "model": st.sampled_from(models),
            "messages": st.lists(
                st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS}), min_size=1, max_size=1
            ),
            "max_tokens": st.integers(1, 6),
            "stream": st.booleans(),
        }
    )
    fields = {"model": CONTENTS, "messages": MESSAGES, **FIELDS}
    odd = st.lists(st.sampled_from(list(fields)), max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )
    return st.builds(lambda body, more: format_chat(port, drop_large_numbers({**body, **more})), valid, odd)


def drop_large_numbers(body: dict[str, object]) -> dict[str, object]:
    """Return a body whose replies are short, so that 10,000 of them take minutes."""
    wanted = body.get("max_tokens")
    if isinstance(wanted, float) and not math.isfinite(wanted):
        return body
    return {**body, "max_tokens": min(wanted, 8)} if isinstance(wanted, int | float) else body


def random_json(port: int) -> st.SearchStrategy[bytes]:
    """Return requests of all routes with random JSON and headers."""
    headers = st.dictionaries(HEADER_NAMES, HEADER_TEXTS, max_size=2)
    return st.builds(
        lambda method, path, body, more: format_request(port, method, path, json.dumps(body).encode(), more),
        st.sampled_from(METHODS),
        st.sampled_from(ROUTES)
        | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30).map("/".__add__),
        JSON_VALUES,
        headers,
    )


def random_body(port: int) -> st.SearchStrategy[bytes]:
    """Return requests for replies with random bytes as body."""
    return st.builds(
        lambda path, body: format_request(port, "POST", path, body),
        st.sampled_from(ROUTES[:3]),
        st.binary(max_size=400),
    )


def random_http(port: int) -> st.SearchStrategy[bytes]:
    """Return bytes that may be no HTTP at all, and valid requests with a few bytes replaced."""
    valid = format_request(port, "POST", "/v1/tokenize", b'{"model": "base", "text": "a"}')

    def replace(position: int, piece: bytes) -> bytes:
        return valid[:position] + piece + valid[position + len(piece) :]

    changed = st.builds(replace, st.integers(0, len(valid)), st.binary(min_size=1, max_size=4))
    return st.binary(min_size=1, max_size=300).map(lambda data: data + b"\r\n\r\n") | changed


def send_all(
    loop: asyncio.AbstractEventLoop, port: int, strategy: st.SearchStrategy[bytes], number: int, first_seed: int
) -> list[tuple[bytes, Answer]]:
    """Send requests one after another, and return them with their answers."""
    answers: list[tuple[bytes, Answer]] = []

    @seed(first_seed)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def send(data: bytes) -> None:
        answers.append((data, loop.run_until_complete(ask(port, data))))

    send()
    return answers


def is_allowed(status: int, *, may_be_silent: bool) -> bool:
    """Return whether an answer may have this status; nobody else asks, so the server is never busy."""
    return status == 200 or 400 <= status < 500 or (status == 0 and may_be_silent)


def main() -> int:
    """Send the requests, print the figures, and return 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description="Send random requests to a server.")
    parser.add_argument("things", nargs="+")
    parser.add_argument("--base")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")

    # Incomplete requests are a part of the fuzz, so the server waits only for a short time.
    words = ["--header-seconds", "2", "--body-seconds", "2"]
    words += [*options.things, *(["--base", options.base] if options.base else [])]
    statuses: dict[str, Counter[int]] = {}
    wrong: list[str] = []
    gc.disable()  # a collection between connecting and sending would make this client a slow one
    loop = asyncio.new_event_loop()
    with ServerProcess(words) as server:
        kinds = {
            "almost valid": almost_valid(server.port, server.models),
            "random JSON": random_json(server.port),
            "random body": random_body(server.port),
            "random HTTP": random_http(server.port),
        }
        for kind, strategy in kinds.items():
            statuses[kind] = Counter()
            for data, answer in send_all(loop, server.port, strategy, options.requests // len(kinds), options.seed):
                statuses[kind][answer.status] += 1
                if not is_allowed(answer.status, may_be_silent=kind == "random HTTP"):
                    wrong.append(f"{answer.status} {answer.body[:200]!r}: {data[:500]!r}")
        faults = server.metric("lora_chat_faults_total")
        memory = server.resident_bytes()
    figures = {
        "requests": sum(sum(counts.values()) for counts in statuses.values()),
        "statuses": {kind: {str(s): n for s, n in sorted(counts.items())} for kind, counts in statuses.items()},
        "wrong": wrong[:20],
        "number_wrong": len(wrong),
        "faults": faults,
        "memory_mb": memory / 1e6,
        "exit_code": server.exit_code,
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    is_good = not wrong and not faults and server.exit_code == 0
    if not is_good:
        print("\n".join(line for line in server.messages().splitlines() if "fault" in line)[-3000:], file=sys.stderr)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
