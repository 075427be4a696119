"""The end of the process of a server: signals, open streams, and messages that nobody reads."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripted_server.py"
REQUEST = b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"


@pytest.fixture
def start():
    processes = []

    def start_server(messages=0, grace=0.3):
        words = [sys.executable, str(SCRIPT), str(messages), str(grace)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(process)
        return process, json.loads(process.stdout.readline())["port"]

    yield start_server
    for process in processes:
        process.kill()
        process.communicate()


def read_rest(connection):
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            data += piece
    return data


def test_the_first_signal_ends_streams_and_the_process_in_order(start):
    process, port = start()
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(REQUEST % port)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert read_rest(connection).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 0
    assert b"Stopping" in errors
    assert b"Traceback" not in errors


def test_the_second_signal_ends_the_process_at_once(start):
    process, port = start(grace=60)
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(REQUEST % port)
        connection.recv(100)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(2) == 128 + signal.SIGTERM


def test_messages_that_nobody_reads_block_neither_answers_nor_the_end(start):
    process, port = start(messages=2000)  # more than a pipe takes
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), 2) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port)
            assert b'{"status":"ok"}' in read_rest(connection)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0
