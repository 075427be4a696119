"""Check of the Host header, so that a page whose name was pointed at this machine (DNS rebinding) reaches nothing."""

import ipaddress
import re
from dataclasses import dataclass

from lora_chat.errors import UsageError
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.listen import parse_address

_HTTP_PORT = 80
_HOST = re.compile(
    r"(?P<name>\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63}){0,126}\.?)(?::(?P<port>[0-9]{1,5}))?"
)
_LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "[::1]"])


@dataclass(frozen=True)
class AllowedHost:
    """A name by which clients may address the server."""

    name: str
    port: int | None
    """None allows every port, because a proxy may listen on another one."""


def parse_allowed_host(text: str) -> AllowedHost:
    """Parse NAME or NAME:PORT of `--allow-host`. Raise UsageError for anything else, such as a URL or a wildcard."""
    parsed = _split(text)
    if parsed is None:
        raise UsageError(
            f"--allow-host {text} is not a name or an address. Fix: write it without http:// and path, such as "
            "--allow-host chat.example.org or --allow-host 192.168.1.5:8000."
        )
    return AllowedHost(*parsed)


def check_host(
    host: str | None, server: tuple[str, int | None] | None, bound_host: str, allowed: tuple[AllowedHost, ...]
) -> None:
    """Raise ApiError unless the Host header names this server.

    `server` is the local address of the connection. An IP address is accepted only if the connection was made to it,
    because rebinding needs a name.
    """
    parsed = _split(host) if host is not None else None
    if parsed is None:
        raise ApiError(400, "The Host header is missing or malformed.", code="bad_host")
    name, port = parsed
    for entry in allowed:
        if entry.name == name and entry.port in (None, port):
            return
    local, local_port = server if server is not None else (None, None)
    is_port_right = (port or _HTTP_PORT) == (local_port or _HTTP_PORT)
    if is_port_right and (name in _LOOPBACK_NAMES or name == _normalize_name(bound_host) or _is_same(name, local)):
        return
    raise ApiError(
        403,
        "The Host header names another server. If it is right, start the server with --allow-host and that name.",
        "permission_error",
        code="host_not_allowed",
    )


def _split(text: str) -> tuple[str, int | None] | None:
    """Return the normalized name and the port of a Host header, or None if it is malformed."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    name, port = _normalize_name(match["name"]), int(match["port"]) if match["port"] else None
    if name.startswith("[") and parse_address(name[1:-1]) is None:
        return None
    return None if port is not None and port > 65535 else (name, port)


def _normalize_name(name: str) -> str:
    """Return a name in lower case without its final dot, and an IPv6 address in its short form with brackets."""
    name = name.lower().removesuffix(".")
    address = parse_address(name.strip("[]"))
    if isinstance(address, ipaddress.IPv6Address):
        return f"[{address.compressed}]"
    return name


def _is_same(name: str, local: str | None) -> bool:
    """Return whether a name is the address to which the connection was made."""
    named, address = parse_address(name.strip("[]")), parse_address(local or "")
    return named is not None and named == address
