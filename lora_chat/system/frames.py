"""Messages between two processes: JSON behind its length, of bounded size, read within a bounded time."""

import json
import os
import select
import time
from typing import Any, BinaryIO

_HEADER_BYTES = 8
_CHUNK_BYTES = 1 << 20


class FrameError(Exception):
    """The other side ended, answered too much, or said something that is no frame."""


class FrameTimeoutError(FrameError):
    """The other side did not answer in time."""


def pack_frame(value: Any) -> bytes:
    """Return a value as the bytes that `unpack_frame` reads; half pairs of UTF-16 in texts stay what they are."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "surrogatepass")
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


def unpack_frame(body: bytes) -> Any:
    """Return the value of a frame without its length."""
    try:
        return json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"sent something that is no frame: {error}") from error


def read_frame(stream: BinaryIO) -> Any:
    """Wait for a frame; None at the end of the stream. For the side that may wait as long as it takes."""
    head = stream.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return unpack_frame(body) if len(body) == size else None


def exchange_frames(to: int | None, sent: bytes, back: int, max_bytes: int, seconds: float) -> Any:
    """Write `sent` to the file descriptor `to`, and return the frame that comes back on `back`.

    Both descriptors are non-blocking. Raises FrameTimeoutError after so many seconds, FrameError for an answer of
    more than `max_bytes` bytes and for an end.
    """
    deadline = time.monotonic() + seconds
    if to is not None:
        _write(to, memoryview(sent), deadline)
    size = int.from_bytes(_read(back, _HEADER_BYTES, deadline), "big")
    if size > max_bytes:
        raise FrameError(f"answered {size} bytes, {max_bytes} are allowed")
    return unpack_frame(_read(back, size, deadline))


def _write(to: int, left: memoryview, deadline: float) -> None:
    while left:
        _wait([], [to], deadline)
        try:
            left = left[os.write(to, left[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise FrameError("ended") from error


def _read(back: int, size: int, deadline: float) -> bytes:
    found = bytearray()
    while len(found) < size:
        _wait([back], [], deadline)
        try:
            piece = os.read(back, min(_CHUNK_BYTES, size - len(found)))
        except BlockingIOError:
            continue
        if not piece:
            raise FrameError("ended")
        found += piece
    return bytes(found)


def _wait(readable: list[int], writable: list[int], deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise FrameTimeoutError("did not answer in time")
    poll = select.poll()
    for descriptor in readable:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writable:
        poll.register(descriptor, select.POLLOUT)
    poll.poll(left * 1000)
