"""Check of the key of a request, and the slow answer to wrong ones."""

import asyncio
import base64
import binascii
import time
from collections import OrderedDict, deque
from collections.abc import Mapping

from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.guards.key_file import KeyFile
from lora_chat.serving.listen import parse_address

FREE_ROUTES = frozenset(["/health"])
"""Paths that need no key."""
_DELAY_SECONDS = 0.5
_MAX_DELAYED = 32
"""Largest number of wrong keys whose answer waits; further ones are refused at once as too many."""
_MAX_WRONG = 10
_WINDOW_SECONDS = 60.0
"""Time in which a client of another machine may send `_MAX_WRONG` wrong keys."""
_MAX_CLIENTS = 4096
_MAX_HEADER_CHARACTERS = 4096
_CHALLENGE = 'Basic realm="lora_chat", charset="UTF-8", Bearer realm="lora_chat"'


class KeyGuard:
    """Check of keys. Wrong ones are answered late, and too many from one address are not compared any more."""

    def __init__(self, keys: KeyFile) -> None:
        self._keys = keys
        self._delayed = 0
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()

    async def check(self, path: str, headers: Mapping[bytes, str], client: str) -> None:
        """Raise ApiError unless the request has a key or its path needs none."""
        if path in FREE_ROUTES:
            return
        key = read_key(headers.get(b"authorization"))
        if key is None:  # a browser asks without a key first, so this costs nothing
            raise _missing_key("This server needs a key: send the header Authorization: Bearer KEY.", "missing_key")
        counts = _is_counted(client)
        if counts and (seconds := self._blocked_seconds(client)):
            raise ApiError(
                429,
                "Too many wrong keys came from this address.",
                "rate_limit_error",
                code="wrong_keys",
                retry_after=seconds,
            )
        if self._keys.accepts(key):
            return
        if counts:
            self._count(client)
        if self._delayed >= _MAX_DELAYED:
            raise ApiError(
                429, "Too many wrong keys.", "rate_limit_error", code="wrong_keys", retry_after=_DELAY_SECONDS
            )
        self._delayed += 1
        try:
            await asyncio.sleep(_DELAY_SECONDS)
        finally:
            self._delayed -= 1
        raise _missing_key("The key is not valid.", "invalid_api_key")

    def _blocked_seconds(self, client: str) -> float:
        """Return the seconds for which keys of a client are not compared; 0 if they are."""
        times = self._wrong.get(client)
        now = time.monotonic()
        while times and now - times[0] > _WINDOW_SECONDS:
            times.popleft()
        return _WINDOW_SECONDS - (now - times[0]) if times and len(times) >= _MAX_WRONG else 0.0

    def _count(self, client: str) -> None:
        """Remember a wrong key of a client, and forget the client that was quiet for the longest time."""
        self._wrong.setdefault(client, deque(maxlen=_MAX_WRONG)).append(time.monotonic())
        self._wrong.move_to_end(client)
        while len(self._wrong) > _MAX_CLIENTS:
            self._wrong.popitem(last=False)


def read_key(authorization: str | None) -> str | None:
    """Return the key of an Authorization header: a bearer token, or the password of HTTP Basic; None without one."""
    if authorization is None or len(authorization) > _MAX_HEADER_CHARACTERS:
        return None
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value or None
    if scheme.lower() != "basic":
        return None
    try:
        _, colon, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return password if colon and password else None


def _is_counted(client: str) -> bool:
    """Return whether wrong keys of an address are counted.

    Clients of this machine share one address, also those of a proxy, and one with an old key must not lock out others.
    """
    address = parse_address(client)
    return address is None or not address.is_loopback


def _missing_key(message: str, code: str) -> ApiError:
    return ApiError(401, message, "authentication_error", code=code, headers={"www-authenticate": _CHALLENGE})
