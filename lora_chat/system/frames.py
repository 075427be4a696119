"""Messages between two processes: JSON after its length in bytes, with limits on size and time."""

import json
import os
import select
import time
from typing import Any, BinaryIO

_HEADER_BYTES = 8
_CHUNK_BYTES = 1 << 20


class FrameError(Exception):
    """An answer of the other process that is missing, too large or not a frame."""


class FrameTimeoutError(FrameError):
    """An answer of the other process that did not come in time."""


def pack_frame(value: object) -> bytes:
    """Return a value as a frame; unpaired surrogates in its texts are kept."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "surrogatepass")
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


def unpack_frame(body: bytes) -> Any:
    """Return the value of a frame, given without its length. Raise FrameError."""
    try:
        return json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"sent an invalid frame: {error}") from error


def read_frame(stream: BinaryIO) -> Any:
    """Wait without a time limit for a frame, and return its value; return None at the end of the stream."""
    head = stream.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return unpack_frame(body) if len(body) == size else None


def exchange_frames(to: int | None, sent: bytes, back: int, max_bytes: int, seconds: float) -> Any:
    """Write `sent` to the file descriptor `to`, and return the value of the frame that `back` answers.

    Both descriptors are non-blocking. Raise FrameTimeoutError after `seconds`, FrameError for an answer of more than
    `max_bytes` bytes or for a closed pipe.
    """
    deadline = time.monotonic() + seconds
    if to is not None:
        _write(to, memoryview(sent), deadline)
    size = int.from_bytes(_read(back, _HEADER_BYTES, deadline), "big")
    if size > max_bytes:
        raise FrameError(f"answered {size} bytes, {max_bytes} are allowed")
    return unpack_frame(_read(back, size, deadline))


def _write(to: int, unsent: memoryview, deadline: float) -> None:
    """Write all bytes to a non-blocking descriptor before the deadline."""
    while unsent:
        _wait([], [to], deadline)
        try:
            unsent = unsent[os.write(to, unsent[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise FrameError("ended") from error


def _read(back: int, size: int, deadline: float) -> bytes:
    """Read `size` bytes from a non-blocking descriptor before the deadline."""
    received = bytearray()
    while len(received) < size:
        _wait([back], [], deadline)
        try:
            piece = os.read(back, min(_CHUNK_BYTES, size - len(received)))
        except BlockingIOError:
            continue
        if not piece:
            raise FrameError("ended")
        received += piece
    return bytes(received)


def _wait(readable: list[int], writable: list[int], deadline: float) -> None:
    """Wait until one of the descriptors is ready. Raise FrameTimeoutError after the deadline."""
    seconds_left = deadline - time.monotonic()
    if seconds_left <= 0:
        raise FrameTimeoutError("did not answer in time")
    poll = select.poll()
    for descriptor in readable:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writable:
        poll.register(descriptor, select.POLLOUT)
    poll.poll(seconds_left * 1000)
