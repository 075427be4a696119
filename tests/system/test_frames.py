"""Answers of other processes are limited in size and time, and must be JSON."""

import os

import pytest

from lora_chat.system.frames import FrameError, FrameTimeoutError, exchange_frames, pack_frame


@pytest.fixture
def pipe():
    back, to = os.pipe()
    os.set_blocking(back, False)
    yield back, to
    os.close(back)
    os.close(to)


def test_frame_round_trip(pipe):
    value = {"text": "ä\ud800\U0001f642\x00", "list": [1, 2.5, None, True]}
    os.write(pipe[1], pack_frame(value))
    assert exchange_frames(None, b"", pipe[0], 1000, 10) == value


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        ((1 << 62).to_bytes(8, "big"), FrameError),
        ((1001).to_bytes(8, "big") + b"x" * 1001, FrameError),
        ((3).to_bytes(8, "big") + b"{no", FrameError),
        ((1).to_bytes(8, "big") + b"\xff", FrameError),
        ((900).to_bytes(8, "big") + b"[" * 900, FrameError),
        (b"", FrameTimeoutError),
        ((9).to_bytes(8, "big") + b"{}", FrameTimeoutError),
    ],
)
def test_refuses_invalid_frames(raw, error, pipe):
    os.write(pipe[1], raw)
    with pytest.raises(error):
        exchange_frames(None, b"", pipe[0], 1000, 0.05)


def test_peer_that_does_not_read_times_out():
    back, to = os.pipe()
    os.set_blocking(to, False)
    with pytest.raises(FrameTimeoutError):
        exchange_frames(to, b"x" * (1 << 22), back, 1000, 0.05)
    os.close(back)
    with pytest.raises(FrameError, match="ended"):
        exchange_frames(to, b"x", to, 1000, 5)
    os.close(to)
