"""Checks of request targets: the user's endpoint, and redirects from it to public https hosts only."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

from lora_chat.system.hub_answers import refused_response
from lora_chat.system.sanitize import sanitize_line

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origin:
    """Scheme, host, port and base path of the endpoint."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def of_endpoint(cls) -> "Origin":
        """Return the origin of HF_ENDPOINT, as set in the hub's library."""
        from huggingface_hub import constants

        url = urlsplit(constants.ENDPOINT)
        return cls(url.scheme, (url.hostname or "").lower(), url.port or _DEFAULT_PORTS.get(url.scheme, 0), url.path)

    def is_same_origin(self, url: httpx2.URL) -> bool:
        """Return whether a URL has the same scheme, host and port."""
        return (url.scheme, url.host.lower(), url.port or _DEFAULT_PORTS.get(url.scheme, 0)) == (
            self.scheme,
            self.host,
            self.port,
        )

    def is_api(self, url: httpx2.URL) -> bool:
        """Return whether a URL belongs to the API, whose responses are JSON."""
        path = url.path.removeprefix(self.path)
        return self.is_same_origin(url) and (path.startswith("/api/") or path.endswith("/info/lfs/objects/batch"))

    def __str__(self) -> str:
        return sanitize_line(f"{self.scheme}://{self.host}:{self.port}", 80)


def is_unencrypted(url: httpx2.URL) -> bool:
    """Return whether others can read requests to a URL, because it is neither encrypted nor on this machine."""
    return url.scheme != "https" and not _is_loopback(url.host)


def check_redirect_target(url: httpx2.URL, endpoint: Origin) -> None:
    """Raise HubResponseError for a URL on another host than the endpoint unless it is https on a public host.

    An endpoint on this machine, such as a local mirror, may also redirect to another port of the same host.
    """
    where = sanitize_line(f"{url.scheme}://{url.host}", 80)
    if url.userinfo:
        raise refused_response(f"it leads to {where} with a password in the address")
    here = endpoint.scheme == "http" and _is_loopback(endpoint.host)
    if here and url.scheme == "http" and url.host.lower() == endpoint.host:
        return
    if url.scheme != "https":
        raise refused_response(f"it leads to {where}, which is not https")
    if _is_local_address(url.host):
        raise refused_response(f"it leads to {where}, inside this machine or its network")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _is_local_address(host: str) -> bool:
    """Return whether a host is this machine or link-local, because services there trust all clients."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        top_level = host.lower().rstrip(".").rpartition(".")[2]
        # The system's resolver also takes "2130706433" and "0x7f.1" for addresses.
        return top_level == "localhost" or not top_level[:1].isalpha()
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
