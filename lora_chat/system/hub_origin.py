"""Where requests of the hub may go: the endpoint that the user chose, and from there only to public https hosts."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

from lora_chat.system.hub_answers import refused_response
from lora_chat.system.sanitize import sanitize_line

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port of the endpoint, and the path under which it lies."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def of_endpoint(cls) -> "Origin":
        """Return the origin of HF_ENDPOINT as the hub's library has it now."""
        from huggingface_hub import constants

        url = urlsplit(constants.ENDPOINT)
        return cls(url.scheme, (url.hostname or "").lower(), url.port or _DEFAULT_PORTS.get(url.scheme, 0), url.path)

    def is_same_origin(self, url: httpx2.URL) -> bool:
        """Return whether a URL has this origin: the same scheme, host and port."""
        return (url.scheme, url.host.lower(), url.port or _DEFAULT_PORTS.get(url.scheme, 0)) == (
            self.scheme,
            self.host,
            self.port,
        )

    def is_api(self, url: httpx2.URL) -> bool:
        """Return whether a URL is one of the API's, whose answers are JSON."""
        path = url.path.removeprefix(self.path)
        return self.is_same_origin(url) and (path.startswith("/api/") or path.endswith("/info/lfs/objects/batch"))

    def __str__(self) -> str:
        return sanitize_line(f"{self.scheme}://{self.host}:{self.port}", 80)


def is_unencrypted(url: httpx2.URL) -> bool:
    """Return whether others can read what is sent to a URL: neither encrypted nor this machine."""
    return url.scheme != "https" and not _is_loopback(url.host)


def check_redirect_target(url: httpx2.URL, endpoint: Origin) -> None:
    """Raise HubResponseError for a URL off the endpoint that is not https to a public host.

    An endpoint on this machine (a stand-in, a local mirror) may also lead to another port of the same host.
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
    """Whether a host is this machine or link-local: services there answer to whoever asks."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        last = host.lower().rstrip(".").rpartition(".")[2]
        # "2130706433" and "0x7f.1" are addresses too for the system's resolver.
        return last == "localhost" or not last[:1].isalpha()
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
