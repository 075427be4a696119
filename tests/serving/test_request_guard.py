import json

import pytest
from guarded_app import ScriptedModels, ask, build_app

from lora_chat.errors import UsageError
from lora_chat.serving.guards.answer_headers import SECURITY_HEADERS
from lora_chat.serving.server_options import ServerOptions

HOSTS = [
    ("127.0.0.1:8000", 200),
    ("localhost:8000", 200),
    ("LOCALHOST:8000", 200),
    ("localhost.:8000", 200),
    ("[::1]:8000", 200),
    ("[0:0:0:0:0:0:0:1]:8000", 200),
    ("127.0.0.1", 403),
    ("127.0.0.1:8001", 403),
    ("127.0.0.2:8000", 403),
    ("evil.example:8000", 403),
    ("127.0.0.1.evil.example:8000", 403),
    ("localhost.evil.example:8000", 403),
    ("evil@127.0.0.1:8000", 400),
    ("127.0.0.1:8000@evil", 400),
    ("127.0.0.1:99999", 400),
    ("127.0.0.1:", 400),
    ("127.0.0.1:8000,evil", 400),
    ("[::1", 400),
    ("[fffff::1]:8000", 400),
    ("", 400),
    (None, 400),
]


@pytest.mark.parametrize(("host", "status"), HOSTS)
def test_accepts_only_hosts_that_name_this_server(host, status):
    assert ask(build_app(), host=host).status == status


@pytest.mark.parametrize(
    ("allowed", "host", "server", "status"),
    [
        (("chat.example",), "chat.example", ("127.0.0.1", 8000), 200),
        (("chat.example",), "chat.example:443", ("127.0.0.1", 8000), 200),
        (("chat.example:8000",), "chat.example:9000", ("127.0.0.1", 8000), 403),
        (("chat.example:8000",), "Chat.Example:8000", ("127.0.0.1", 8000), 200),
        (("chat.example",), "other.example", ("127.0.0.1", 8000), 403),
        ((), "192.168.1.5:8000", ("192.168.1.5", 8000), 200),
        ((), "192.168.1.5:8000", ("192.168.1.6", 8000), 403),
        ((), "[fd00::5]:8000", ("fd00::5", 8000), 200),
        ((), "192.168.1.5:8000", ("::ffff:192.168.1.5", 8000), 200),
        ((), "name.lan:8000", ("192.168.1.5", 8000), 403),
        ((), "127.0.0.1", ("127.0.0.1", 80), 200),
    ],
)
def test_accepts_further_hosts_and_the_address_of_the_connection(allowed, host, server, status):
    assert ask(build_app(ServerOptions(allow_hosts=allowed)), host=host, server=server).status == status


ORIGINS = [
    ("GET", [], 200),
    ("POST", [], 200),
    ("POST", [("origin", "http://127.0.0.1:8000")], 200),
    ("POST", [("origin", "http://127.0.0.1:8000"), ("sec-fetch-site", "same-origin")], 200),
    ("POST", [("sec-fetch-site", "none")], 200),
    ("GET", [("sec-fetch-site", "cross-site")], 200),
    ("POST", [("sec-fetch-site", "cross-site")], 403),
    ("POST", [("sec-fetch-site", "same-site")], 403),
    ("POST", [("origin", "http://localhost:8000")], 403),
    ("GET", [("origin", "http://evil.example")], 403),
    ("POST", [("origin", "http://127.0.0.1:8001")], 403),
    ("POST", [("origin", "http://127.0.0.1:8000.evil.example")], 403),
    ("POST", [("origin", "null")], 403),
    ("POST", [("origin", "file://")], 403),
    ("POST", [("origin", "http://127.0.0.1:8000/")], 403),
]


@pytest.mark.parametrize(("method", "headers", "status"), ORIGINS)
def test_accepts_only_requests_of_its_own_page(method, headers, status):
    body = b"{}" if method == "POST" else None
    answer = ask(build_app(), method, "/echo", headers, body)
    assert answer.status == status
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_answers_an_allowed_origin_and_its_preflight():
    app = build_app(ServerOptions(allow_origins=("https://chat.example",)))
    origin = [("origin", "https://chat.example"), ("sec-fetch-site", "cross-site")]
    answer = ask(app, "POST", "/echo", origin, b"{}")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://chat.example")
    preflight = ask(app, "OPTIONS", "/echo", [*origin, ("access-control-request-method", "POST")])
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, "https://chat.example")
    assert (
        ask(
            app, "OPTIONS", "/echo", [("origin", "https://evil.example"), ("access-control-request-method", "POST")]
        ).status
        == 403
    )
    assert ask(app, "POST", "/echo", [("origin", "https://evil.example")], b"{}").status == 403


@pytest.mark.parametrize("text", ["*", "null", "chat.example", "https://chat.example/", "https://", "ftp://a"])
def test_refuses_an_origin_that_is_none(text):
    with pytest.raises(UsageError, match="--allow-origin"):
        build_app(ServerOptions(allow_origins=(text,)))


@pytest.mark.parametrize("text", ["*", "", "http://a", "a/b", "a b", "*.example", "[::1"])
def test_refuses_an_allowed_host_that_is_none(text):
    with pytest.raises(UsageError, match="--allow-host"):
        build_app(ServerOptions(allow_hosts=(text,)))


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PUT", "PATCH", "OPTIONS", "PROPFIND", "get"])
def test_refuses_other_methods(method):
    assert ask(build_app(), method, "/echo").status == 405


def test_head_is_get_without_a_body():
    assert ask(build_app(), "HEAD", "/health").status == 200


SMALL = ServerOptions(max_body_bytes=100)
BODIES = [
    ("whole", {"body": b"{}"}, 200),
    ("of the largest length", {"body": b'"' + b"x" * 98 + b'"'}, 200),
    ("one byte too long", {"body": b'"' + b"x" * 99 + b'"'}, 413),
    ("in pieces", {"body": [b"{", b"}"]}, 200),
    ("too long in pieces", {"body": [b"x" * 60, b"x" * 60]}, 413),
    ("empty", {"body": b""}, 400),
    ("without a type", {"body": b"{}", "headers": [("content-type", "")]}, 415),
    ("form", {"body": b"a=b", "headers": [("content-type", "application/x-www-form-urlencoded")]}, 415),
    ("text", {"body": b"{}", "headers": [("content-type", "text/plain")]}, 415),
    ("almost JSON", {"body": b"{}", "headers": [("content-type", "application/jsonp")]}, 415),
    ("hidden JSON", {"body": b"{}", "headers": [("content-type", "text/plain; a=application/json")]}, 415),
    ("JSON in UTF-8", {"body": b"{}", "headers": [("content-type", "Application/JSON; charset=utf-8")]}, 200),
    ("JSON in UTF-16", {"body": b"{}", "headers": [("content-type", "application/json; charset=utf-16")]}, 415),
    (
        "compressed",
        {"body": b"{}", "headers": [("content-type", "application/json"), ("content-encoding", "gzip")]},
        415,
    ),
    (
        "with two lengths",
        {"body": b"{}", "headers": [("content-type", "application/json"), ("content-length", "2")]},
        400,
    ),
    (
        "length and encoding",
        {"body": [b"{}"], "headers": [("content-type", "application/json"), ("content-length", "2")]},
        400,
    ),
    ("negative length", {"headers": [("content-type", "application/json"), ("content-length", "-1")]}, 400),
]


@pytest.mark.parametrize(("request_parts", "status"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
def test_checks_bodies_before_a_route_sees_them(request_parts, status):
    answer = ask(build_app(SMALL), "POST", "/echo", **request_parts)
    assert answer.status == status
    assert status == 200 or answer.error["message"]


def test_a_get_request_has_no_body():
    assert ask(build_app(), "GET", "/echo", body=b"{}").status == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 100 + b"]" * 100, 200),
        (b"[" * 101 + b"]" * 101, 400),
        (b'{"a":' * 101 + b"1" + b"}" * 101, 400),
        (b"[" * 500_000, 400),
        (b'"' + b"[" * 5000 + b'"', 200),
        (b'"\\"' + b"[" * 5000 + b'"', 200),
        (b'"\\\\"' + b"[" * 5000, 400),
        (b"[" + b"[]," * 5000 + b"[]]", 200),
        (b'"' + b"\\" * 500_000, 200),
    ],
)
def test_refuses_deeply_nested_json(body, status):
    assert ask(build_app(), "POST", "/echo", body=body).status == status


def test_a_slow_body_ends_with_408():
    assert ask(build_app(ServerOptions(body_seconds=0.05)), "POST", "/echo", body=[b"{", 0.5, b"}"]).status == 408


def test_a_client_that_leaves_within_its_body_gets_nothing():
    app = build_app()
    assert ask(app, "POST", "/echo", body=[b"{", None]).status == 0
    assert "lora_chat_disconnects_total 1.0" in ask(app, path="/metrics").body.decode()


@pytest.mark.parametrize("path", ["/wait", "/stream"])
def test_work_stops_when_its_client_leaves(path):
    app = build_app()
    ask(app, "POST", path, body=b"{}", leaves_after=0.05)
    assert app.state.was_cancelled if path == "/wait" else app.state.is_finished and not app.state.ended_in_order
    assert app.state.sent < 20
    assert (app._working, app._telemetry.requests_now) == (0, 0)


def test_too_many_requests_get_429_with_a_time():
    models = ScriptedModels(waiting=32, running=16)
    answer = ask(build_app(ServerOptions(max_requests=0), models=models), "POST", "/echo", body=b"{}")
    assert answer.status == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert answer.error["type"] == "rate_limit_error"


def test_the_deadline_ends_a_route_that_does_not_end(monkeypatch):
    monkeypatch.setattr("lora_chat.serving.guards.request_guard._EXTRA_SECONDS", 0.0)
    app = build_app(ServerOptions(request_seconds=0.05))
    answer = ask(app, "POST", "/wait", body=b"{}")
    assert (answer.status, app.state.was_cancelled) == (503, True)
    assert "retry-after" in answer.headers


def test_a_fault_is_503_without_its_text(messages):
    app = build_app()
    answer = ask(app, "POST", "/fail", body=b"{}")
    assert (answer.status, answer.error["code"]) == (503, "internal_error")
    assert "secret" not in answer.body.decode() + "".join(messages)
    assert any("RuntimeError at guarded_app.py" in message for message in messages)
    assert 'lora_chat_faults_total{kind="RuntimeError"} 1.0' in ask(app, path="/metrics").body.decode()


@pytest.mark.parametrize("path", ["/health", "/nothing", "/fail", "/health/", "//evil.example/", "/%2e%2e/"])
def test_every_answer_has_the_security_headers_and_no_server_name(path):
    answer = ask(build_app(), path=path)
    assert answer.status in (200, 404, 503)
    assert {name.decode(): value.decode() for name, value in SECURITY_HEADERS}.items() <= answer.headers.items()
    assert not {"server", "x-powered-by", "location"} & answer.headers.keys()
    assert path == "/health" or set(answer.error) == {"message", "type", "param", "code"}


def test_requests_are_logged_without_content_and_query(messages):
    app = build_app()
    ask(app, "POST", "/echo", body=b'"a private prompt"')
    ask(app, path="/nothing-private")
    ask(app, "POST", "/echo", [("content-type", "text/plain")], b"private")
    ask(app, "PRIVATE", "/echo")
    assert messages[0].startswith("POST /echo 200 model=base in=18 out=1 first=0.")
    assert "finish=stop" in messages[0]
    assert messages[1].startswith("GET unmatched 404 ")
    assert messages[2].startswith("POST /echo 415 refused=not_json total=")
    assert messages[3].startswith("other /echo 405 ")
    assert not any("private" in message.lower() for message in messages)


def test_content_is_logged_only_on_request(tmp_path, messages):
    file = tmp_path / "content.jsonl"
    ask(build_app(content=file), "POST", "/echo", body=b'"\xc3\xa4"')
    entry = json.loads(file.read_text())
    assert (entry["request"], json.loads(entry["reply"])) == ('"ä"', {"length": 4})
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    assert any("Prompts and replies are logged" in message for message in messages)


def test_a_stopping_server_refuses_new_requests():
    app = build_app()
    app.is_stopping = True
    assert ask(app, path="/health").status == 503
    assert ask(app, "POST", "/echo", body=b"{}").error["code"] == "stopping"


def test_metrics_count_without_labels_from_clients():
    app = build_app()
    ask(app, "POST", "/echo", body=b"{}")
    ask(app, "SECRETMETHOD", "/secret")
    ask(app, path="/secret/path")
    ask(app, "POST", "/refuse", body=b"{}")
    text = ask(app, path="/metrics").body.decode()
    assert "SECRET" not in text.upper()
    for line in [
        'lora_chat_requests_total{method="POST",route="/echo",status="200"} 1.0',
        'lora_chat_requests_total{method="other",route="unmatched",status="405"} 1.0',
        'lora_chat_prompt_tokens_total{model="base"} 2.0',
        'lora_chat_completion_tokens_total{model="base"} 1.0',
        'lora_chat_refused_total{reason="no"} 1.0',
        'lora_chat_replies_total{finish="stop",model="base"} 1.0',
    ]:
        assert line in text
    openmetrics = ask(app, path="/metrics", headers=[("accept", "application/openmetrics-text; version=1.0.0")])
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")
