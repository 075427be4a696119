"""Checks of the body of a request before a route sees it: type, length, time and nesting."""

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_chat.serving.api_errors import ApiError
from lora_chat.system.strict_json import MAX_DEPTH

if TYPE_CHECKING:
    from starlette.types import Receive

_JSON_TYPE = re.compile(r"application/json\s*(?:;\s*charset\s*=\s*\"?utf-8\"?\s*)?", re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,18}")
_BODY_METHODS = frozenset(["POST", "PUT", "PATCH"])
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class ClientGoneError(Exception):
    """A client that closed its connection."""


def check_body_headers(method: str, headers: Mapping[bytes, str], max_bytes: int) -> None:
    """Raise ApiError for a body that is not JSON or too long, from its headers only."""
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers and length is not None:
        raise ApiError(400, "A request has a length or an encoding, not both.", headers={"connection": "close"})
    if length is not None:
        if _LENGTH.fullmatch(length) is None:
            raise ApiError(400, "The Content-Length header is malformed.")
        if int(length) > max_bytes:
            raise too_large(max_bytes)
    has_body = b"transfer-encoding" in headers or int(length or 0) > 0
    if headers.get(b"content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Compressed bodies are not accepted.", code="unsupported_encoding")
    if method in _BODY_METHODS and (has_body or b"content-type" in headers):
        # A form of another page can send text and forms without asking first, but not this type.
        if _JSON_TYPE.fullmatch(headers.get(b"content-type", "").strip()) is None:
            raise ApiError(415, "The body must have the header Content-Type: application/json.", code="not_json")
    elif has_body:
        raise ApiError(400, f"A {method} request has no body.", code="unexpected_body")


async def read_body(receive: "Receive", max_bytes: int, seconds: float) -> bytes:
    """Return the whole body. Raise ApiError if it is too long, too slow or nested too deeply, or ClientGoneError."""
    try:
        # asyncio.timeout does not exist in Python 3.10.
        body = await asyncio.wait_for(_collect(receive, max_bytes), seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"The body took longer than {seconds:g} seconds.", code="body_timeout") from None
    if is_nested_too_deeply(body):
        raise ApiError(400, f"The body is nested deeper than {MAX_DEPTH} levels.", code="nested_too_deeply")
    return body


async def _collect(receive: "Receive", max_bytes: int) -> bytes:
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts += message.get("body", b"")
        if len(parts) > max_bytes:
            parts.clear()  # the error and its frames refer to each other, so they stay until the next collection
            raise too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(parts)


def is_nested_too_deeply(body: bytes) -> bool:
    """Return whether lists and objects of JSON are nested deeper than MAX_DEPTH, in time linear in the length."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for byte in _STRING.sub(b"", body).translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def too_large(max_bytes: int) -> ApiError:
    """Return the error for a body that is too long."""
    return ApiError(413, f"The body is longer than {max_bytes:,} bytes.", code="body_too_large")
