"""Real sockets and raw bytes: slow clients, malformed requests, and the order of ending."""

import contextlib
import ipaddress
import json
import re
import socket
import threading
import time

import pytest
from guarded_app import build_app

from lora_chat.serving import http_protocol, run_server
from lora_chat.serving.listen import open_listener
from lora_chat.serving.server_options import ServerOptions

OPTIONS = ServerOptions(
    max_body_bytes=1000,
    max_header_bytes=2000,
    max_connections=24,
    header_seconds=0.3,
    body_seconds=0.3,
    write_seconds=0.3,
    idle_seconds=0.3,
    grace_seconds=0.3,
)


class ThreadServer:
    """A server in a thread of the test."""

    def __init__(self, options):
        self.app = build_app(options)
        self.listener = open_listener("127.0.0.1", 0)
        config = run_server.configure(self.app, options, self.app._telemetry)
        models = self.app.state.models
        started = threading.Event()
        self.server = run_server._Server(config, models, self.app, self.app._telemetry, started.set)
        self.server.capture_signals = contextlib.nullcontext  # signals need the main thread
        self.listener.make_reusable()
        self.thread = threading.Thread(target=self.server.run, args=(list(self.listener.sockets),))
        self.thread.start()
        assert started.wait(10)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.listener.port), timeout=5)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    def metric(self, name):
        lines = self.app._telemetry.export("")[0].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def server():
    server = ThreadServer(OPTIONS)
    yield server
    server.stop()


def read_all(connection):
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            data += piece
    return data


def exchange(server, data):
    """Return everything that the server sends until it closes the connection."""
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data.replace(b"PORT", str(server.listener.port).encode()))
        return read_all(connection)


def statuses(data):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) [A-Z]", data)]


HOST = b"Host: 127.0.0.1:PORT\r\n"
JSON = b"Content-Type: application/json\r\n"
POST = b"POST /echo HTTP/1.1\r\n" + HOST + JSON
END = b"Connection: close\r\n\r\n"
RAW = {
    "valid": (b"GET /health HTTP/1.1\r\n" + HOST + END, 200),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n" + HOST + b"\r\n", 200),
    "HTTP/1.0 without host": (b"GET /health HTTP/1.0\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n" + END, 400),
    "two hosts": (b"GET /health HTTP/1.1\r\n" + HOST + HOST + END, 400),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 400),
    "HTTP/9": (b"GET / HTTP/9.9\r\n" + HOST + END, 400),
    "no version": (b"GET /health\r\n\r\n", 400),
    "space before colon": (b"GET /health HTTP/1.1\r\nHost : a\r\n" + END, 400),
    "folded header": (b"GET /health HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n" + END, 200),
    "null in header": (b"GET /health HTTP/1.1\r\n" + HOST + b"A: b\0c\r\n" + END, 400),
    "bare line feeds": (b"GET /health HTTP/1.1\n" + HOST.replace(b"\r", b"") + b"Connection: close\n\n", 200),
    "long headers": (b"GET /health HTTP/1.1\r\n" + HOST + b"A: " + b"x" * 3000 + b"\r\n" + END, 431),
    "long path": (b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\n" + HOST + END, 431),
    "absolute target": (b"GET http://evil.example/health HTTP/1.1\r\n" + HOST + END, 404),
    "authority target": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + END, 405),
    "web socket": (
        b"GET /health HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
        200,
    ),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n" + END + b"{}", 400),
    "length list": (POST + b"Content-Length: 2, 3\r\n" + END + b"{}", 400),
    "length with sign": (POST + b"Content-Length: +2\r\n" + END + b"{}", 400),
    "length in hex": (POST + b"Content-Length: 0x2\r\n" + END + b"{}", 400),
    "huge length": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n" + END, 400),
    "length beyond the limit": (POST + b"Content-Length: 1001\r\n" + END, 413),
    "length and encoding": (
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n" + END + b"2\r\n{}\r\n0\r\n\r\n",
        400,
    ),
    "two encodings": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + END, 400),
    "other encoding": (POST + b"Transfer-Encoding: gzip, chunked\r\n" + END, 400),
    "hidden encoding": (POST + b"Transfer-Encoding: xchunked\r\n" + END, 400),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n" + END + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", 200),
    "chunk of negative size": (POST + b"Transfer-Encoding: chunked\r\n" + END + b"-1\r\n{\r\n0\r\n\r\n", 400),
    "endless chunks": (
        POST + b"Transfer-Encoding: chunked\r\n" + END + b"64\r\n" + b"x" * 100 + (b"\r\n64\r\n" + b"x" * 100) * 12,
        413,
    ),
    "tiny chunks": (POST + b"Transfer-Encoding: chunked\r\n" + END + b"1\r\nx\r\n" * 400, 400),
    "body shorter than its length": (POST + b"Content-Length: 5\r\n" + END + b"{}", 408),
}


@pytest.mark.parametrize(("data", "status"), RAW.values(), ids=RAW)
def test_raw_requests_get_one_status(server, data, status):
    answer = exchange(server, data)
    assert statuses(answer) == [status]
    assert b"x-content-type-options: nosniff" in answer
    assert b"uvicorn" not in answer.lower()
    if status != 200:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_pipelined_requests_are_answered_in_order(server):
    data = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\nGET /nothing HTTP/1.1\r\n" + HOST + END
    assert statuses(exchange(server, data)) == [200, 404]


def test_a_second_request_is_not_hidden_in_a_body(server):
    hidden = b"GET /nothing HTTP/1.1\r\n" + HOST + END
    length = len(hidden.replace(b"PORT", str(server.listener.port).encode()))
    data = POST + b"Content-Length: %d\r\n" % length + END + hidden
    assert statuses(exchange(server, data)) == [200]


def test_slow_and_idle_clients_are_disconnected(server):
    start = time.monotonic()
    with server.connect() as silent, server.connect() as slow, server.connect() as idle, server.connect() as trickle:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost:")
        idle.sendall(b"GET /health HTTP/1.1\r\n" + HOST.replace(b"PORT", str(server.listener.port).encode()) + b"\r\n")
        for _ in range(8):
            with contextlib.suppress(OSError):
                trickle.sendall(b"G")
            time.sleep(0.05)
        assert read_all(silent) == b""
        assert statuses(read_all(slow)) == [408]
        assert statuses(read_all(idle)) == [200]
        assert statuses(read_all(trickle)) == [408]
    assert time.monotonic() - start < 2


def test_a_refused_body_is_not_read_without_end(server):
    with server.connect() as connection:
        port = str(server.listener.port).encode()
        connection.sendall(
            (b"POST /echo HTTP/1.1\r\nHost: evil\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n").replace(
                b"PORT", port
            )
        )
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(1000):
                connection.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
                sent += 1
                time.sleep(0.001)
        assert sent < 900
        assert statuses(read_all(connection)) in ([403], [])


def test_a_client_that_does_not_read_is_disconnected(server):
    state = server.app.state
    state.padding, state.pause, state.is_finished = b"x" * 65536, 0.0, False
    try:
        with server.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(
                b"GET /stream HTTP/1.1\r\n" + HOST.replace(b"PORT", str(server.listener.port).encode()) + b"\r\n"
            )
            wait_until(lambda: state.is_finished)
        assert state.sent < 1500
        assert server.metric('lora_chat_refused_total{reason="slow_reader"}') == 1
    finally:
        state.padding, state.pause = b"", 0.01


@pytest.mark.parametrize("more", [b"", b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"])
def test_work_stops_when_a_connection_ends(server, more):
    state = server.app.state
    state.was_cancelled = state.is_waiting = False
    request = POST.replace(b"/echo", b"/wait") + b"Content-Length: 2\r\n\r\n{}" + more
    with server.connect() as connection:
        connection.sendall(request.replace(b"PORT", str(server.listener.port).encode()))
        wait_until(lambda: state.is_waiting)
    wait_until(lambda: state.was_cancelled)


def test_connections_beyond_the_limit_are_refused(server):
    wait_until(lambda: server.metric("lora_chat_connections") == 0)
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(server.connect()) for _ in range(OPTIONS.max_connections)]
        assert statuses(exchange(server, b"")) == [503]
        assert read_all(first[0]) == b""
    wait_until(lambda: server.metric("lora_chat_connections") == 0)
    assert statuses(exchange(server, RAW["valid"][0])) == [200]


def test_one_other_machine_gets_half_of_the_connections(server, monkeypatch):
    monkeypatch.setattr(http_protocol, "parse_address", lambda address: ipaddress.ip_address("192.0.2.1"))
    wait_until(lambda: server.metric("lora_chat_connections") == 0)
    with contextlib.ExitStack() as stack:
        for _ in range(OPTIONS.max_connections // 2):
            stack.enter_context(server.connect())
        assert statuses(exchange(server, b"")) == [503]
    wait_until(lambda: server.metric("lora_chat_connections") == 0)


@pytest.mark.parametrize("pieces", [20, 2000])
def test_a_stop_lets_streams_end(pieces):
    server = ThreadServer(OPTIONS)
    with server.connect() as connection, server.connect():
        connection.sendall(
            b"GET /stream HTTP/1.1\r\n" + HOST.replace(b"PORT", str(server.listener.port).encode()) + b"\r\n"
        )
        wait_until(lambda: server.app.state.sent > 2)
        server.app.state.pause = 0.0 if pieces == 20 else 0.01
        server.server.should_exit = True
        data = read_all(connection)
    server.stop()
    assert server.app.state.ended_in_order
    assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert server.app.state.models.generator.ended is (pieces == 2000)
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    open_listener("127.0.0.1", server.listener.port).close()


def wait_until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
