"""Addresses to listen on: which of them only this machine reaches, and the sockets."""

import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.errors import InUseError, UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_SEND_BUFFER_BYTES = 2**18
"""Bytes of a reply that the system keeps for a client that does not read."""
_LOCALHOST = ("127.0.0.1", "::1")
"""Addresses of `localhost` on a system that cannot resolve it."""
_FREE_PORT_TRIES = 20


@dataclass(frozen=True)
class Listener:
    """Sockets that are bound but do not listen yet, so that a used port is found before weights load."""

    sockets: tuple[socket.socket, ...]
    host: str
    """Name or address that the user gave."""
    port: int
    is_loopback: bool
    """Whether only this machine can connect."""

    @property
    def url(self) -> str:
        """Return the address of the page, for this machine."""
        family, address = self.sockets[0].family, self.sockets[0].getsockname()[0]
        if ipaddress.ip_address(address.partition("%")[0]).is_unspecified:
            address = "127.0.0.1" if family == socket.AF_INET else "::1"
        return f"http://[{address}]:{self.port}/" if ":" in address else f"http://{address}:{self.port}/"

    def make_reusable(self) -> None:
        """Prepare the sockets to listen. Their connections inherit the option, and a later server can bind the port."""
        for bound in self.sockets:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def close(self) -> None:
        """Close the sockets."""
        for bound in self.sockets:
            bound.close()


def parse_address(text: str) -> Address | None:
    """Return an IP address, an IPv4 address if it is one mapped into IPv6; None for a name."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def resolve_host(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    """Return the family and address of each address of a name, once each. Raise UsageError if none exists."""
    try:
        if not host or host != host.strip() or "\0" in host:
            raise OSError("it is empty or has spaces")
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        if host.lower() == "localhost":
            families = (socket.AF_INET, socket.AF_INET6)
            return [(family, (address, port)) for family, address in zip(families, _LOCALHOST, strict=True)]
        raise UsageError(
            f"--host {host} has no address ({getattr(error, 'strerror', None) or error}). "
            "Fix: --host 127.0.0.1 for this machine only, or an address of this machine."
        ) from error
    families = (socket.AF_INET, socket.AF_INET6)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in answers if family in families))  # type: ignore[misc]


def is_loopback(addresses: Sequence[tuple[int, tuple[str, int]]]) -> bool:
    """Return whether only this machine reaches every one of the addresses."""
    parsed = [parse_address(address[0]) for _, address in addresses]
    return bool(parsed) and all(address is not None and address.is_loopback for address in parsed)


def open_listener(host: str, port: int, addresses: Sequence[tuple[int, tuple[str, int]]] | None = None) -> Listener:
    """Bind the addresses of a name; port 0 takes a free one. Raise UsageError or InUseError.

    `addresses` are the addresses that were checked before, because a second answer for the name may differ.
    """
    addresses = addresses if addresses is not None else resolve_host(host, port)
    for _ in range(_FREE_PORT_TRIES):
        try:
            sockets = _bind_all(addresses, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port == 0:
                continue  # the free port of the first address is used at the second
            raise _explain(error, host, port) from error
        return Listener(sockets, host, sockets[0].getsockname()[1], is_loopback(addresses))
    raise InUseError(f"No port is free at all addresses of {host}. Fix: name one with --port.")


def _bind_all(addresses: Sequence[tuple[int, tuple[str, int]]], port: int) -> tuple[socket.socket, ...]:
    """Bind all addresses to one port. An address of a family that this machine lacks is left out if another works."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                sockets.append(_bind(family, (address[0], chosen, *address[2:])))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if not sockets:
            raise missing or OSError(errno.EADDRNOTAVAIL, "no address")
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return tuple(sockets)


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    """Return a bound socket that no other process can bind, although it does not listen yet."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            only_v6 = parse_address(str(address[0])) != ipaddress.IPv6Address("::")
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_v6))
        # The first option lets a server start again at once; a second process could bind the port if it stayed.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def _explain(error: OSError, host: str, port: int) -> UsageError | InUseError:
    """Return the message for an address that cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return InUseError(
            f"Port {port} is in use at {host}. Fix: another one with --port N, or --port 0 for a free one."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UsageError(f"Port {port} needs more rights than this user has. Fix: --port 8000.")
    return UsageError(
        f"--host {host} is not an address of this machine ({error.strerror}). "
        "Fix: --host 127.0.0.1 for this machine only."
    )
