"""A small HTTP/1.1 client on asyncio, which can also be slow, rude and wrong."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

TIMEOUT_SECONDS = 180


@dataclass
class Answer:
    """Status, headers and body of an answer; status 0 is a closed connection without one."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False
    """Whether the body ended as its headers promised."""


def format_request(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, host: str | None = None
) -> bytes:
    """Return the bytes of a request that closes its connection."""
    fields = {"Host": host or f"127.0.0.1:{port}", "Connection": "close", **(headers or {})}
    if method == "POST":
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **fields}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def format_chat(port: int, body: dict[str, object]) -> bytes:
    """Return the bytes of a request for a reply."""
    return format_request(port, "POST", "/v1/chat/completions", json.dumps(body).encode())


class Connection:
    """One connection, used for one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.answer = Answer()

    @classmethod
    async def open(cls, port: int, receive_buffer: int | None = None) -> Connection:
        """Connect to this machine; a small buffer makes a slow reader visible to the server."""
        connected = socket.socket()
        connected.setblocking(False)
        if receive_buffer is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=connected, limit=receive_buffer or 2**16)
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        """Send bytes; a server that closed the connection already may have answered."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            pass

    async def read_head(self) -> Answer:
        """Read the status line and the headers of the final answer."""
        head = b"HTTP/1.1 1"
        try:
            while head.startswith(b"HTTP/1.1 1"):
                head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return self.answer
        first, *lines = head.decode("latin-1").split("\r\n")
        self.answer.status = int(first.split(" ")[1])
        pairs = (line.partition(": ") for line in lines if line)
        self.answer.headers = {name.lower(): value for name, _, value in pairs}
        return self.answer

    async def read_pieces(self) -> AsyncIterator[bytes]:
        """Yield the pieces of the body, and note whether it is complete."""
        headers = self.answer.headers
        try:
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    yield (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
            elif "content-length" in headers:
                yield await self.reader.readexactly(int(headers["content-length"]))
            self.answer.is_complete = True
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            return

    async def read_all(self) -> Answer:
        """Read the whole answer."""
        await self.read_head()
        async for piece in self.read_pieces():
            self.answer.body += piece
        return self.answer

    def close(self) -> None:
        """Close the connection at once."""
        self.writer.transport.abort()


async def ask(port: int, data: bytes) -> Answer:
    """Return the answer to a request that is sent as it stands."""
    connection = await Connection.open(port)
    try:
        await connection.send(data)
        return await asyncio.wait_for(connection.read_all(), TIMEOUT_SECONDS)
    finally:
        connection.close()
