"""Requests to a package index and to the hosts of its files; their answers are a stranger's."""

import netrc
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from lora_chat.errors import UnavailableError, first_line
from lora_chat.system.http_client import is_loopback_host
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    import httpx2

_CONNECT_SECONDS, _IDLE_SECONDS = 15.0, 60.0
_MAX_REDIRECTS = 5
_MAX_PAGE_BYTES = 16_000_000
_MAX_URL_CHARACTERS = 4_000
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class BrokenConnectionError(Exception):
    """A request that may succeed when it is repeated."""


class IndexClient:
    """A client for one index: proxies come from the environment, certificates from the settings."""

    def __init__(self, index: str, certificates: str | None) -> None:
        import httpx2

        self.index = index
        self.shown = hide_password(index)
        try:
            context = _make_context(certificates)
            self._client = httpx2.Client(
                verify=context or True,
                follow_redirects=False,
                timeout=httpx2.Timeout(_IDLE_SECONDS, connect=_CONNECT_SECONDS),
            )
        except (OSError, ValueError, ImportError) as error:  # certificates that are missing, an unknown kind of proxy
            raise UnavailableError(f"{self.shown} cannot be asked: {_shorten(error)}") from error

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def read_page(self, address: str, accept: str) -> tuple[bytes, str, str] | None:
        """Return a page, its content type and its final address; None if the index has no such page.

        Raises UnavailableError, BrokenConnectionError.
        """
        with self.open(address, {"Accept": accept}) as response:
            if response.status_code in (404, 410):
                return None
            _check_status(response, self.shown)
            body = bytearray()
            for part in response.iter_raw():
                body += part
                if len(body) > _MAX_PAGE_BYTES:
                    raise UnavailableError(f"{self.shown} sent a page of more than {_MAX_PAGE_BYTES:,} bytes")
            return bytes(body), response.headers.get("Content-Type", ""), str(response.url)

    @contextmanager
    def open(self, address: str, headers: Mapping[str, str]) -> Iterator["httpx2.Response"]:
        """Yield the answer to GET after redirects, unread and uncompressed.

        Raises UnavailableError for an address that is refused, BrokenConnectionError if the connection fails.
        """
        import httpx2

        try:
            for _ in range(_MAX_REDIRECTS + 1):
                self._check_target(address)
                sent = {"Accept-Encoding": "identity", **headers, **self._make_login(address)}
                with self._client.stream("GET", _without_login(address), headers=sent) as response:
                    if response.status_code not in _REDIRECTS:
                        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
                            raise UnavailableError(f"{self.shown} sent a compressed answer, which was not asked for")
                        yield response
                        return
                    address = urljoin(address, response.headers.get("Location", ""))
            raise UnavailableError(f"{self.shown} redirects more than {_MAX_REDIRECTS} times")
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise BrokenConnectionError(_shorten(error)) from error
        except (httpx2.InvalidURL, ValueError) as error:
            raise UnavailableError(f"{self.shown} leads to an invalid address") from error

    def _check_target(self, address: str) -> None:
        """Raise UnavailableError for a target that an index may not lead to: unencrypted, or inside this machine.

        An index that the user wrote with http:// may do both.
        """
        parts = urlsplit(address)
        if len(address) > _MAX_URL_CHARACTERS or not parts.hostname or parts.scheme not in ("http", "https"):
            raise UnavailableError(f"{self.shown} leads to an invalid address")
        where = sanitize_line(f"{parts.scheme}://{parts.hostname}", 100)
        is_open = urlsplit(self.index).scheme == "http"
        if parts.scheme == "http" and not is_open:
            raise UnavailableError(f"{self.shown} leads to {where}, which is not encrypted")
        own = urlsplit(self.index).hostname
        if is_loopback_host(parts.hostname) and not is_loopback_host(own or ""):
            raise UnavailableError(f"{self.shown} leads to {where}, inside this machine")

    def _make_login(self, address: str) -> dict[str, str]:
        """Return the header with the login of the index, only for the index itself."""
        import httpx2

        own, target = urlsplit(self.index), urlsplit(address)
        if (own.scheme, own.hostname, own.port) != (target.scheme, target.hostname, target.port):
            return {}
        user, password = unquote(own.username or ""), unquote(own.password or "")
        if not user:
            with suppress(OSError, netrc.NetrcParseError, RuntimeError):
                entry = netrc.netrc().authenticators(own.hostname or "")
                user, password = (entry[0], entry[2] or "") if entry else ("", "")
        if not user:
            return {}
        request = httpx2.Request("GET", _without_login(address))
        return {"Authorization": next(httpx2.BasicAuth(user, password).auth_flow(request)).headers["Authorization"]}


def _check_status(response: "httpx2.Response", shown: str) -> None:
    if response.status_code in _TRANSIENT:
        raise BrokenConnectionError(f"status {response.status_code}")
    if response.status_code not in (200, 206):
        raise UnavailableError(f"{shown} answers with status {response.status_code}")


def check_file_status(response: "httpx2.Response", shown: str) -> None:
    """Raise UnavailableError for an answer without a file, BrokenConnectionError for one that may change."""
    _check_status(response, shown)


def hide_password(address: str) -> str:
    """Return an address for messages, without user and password."""
    return sanitize_line(_without_login(address), 200)


def _without_login(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _make_context(certificates: str | None) -> ssl.SSLContext | None:
    """Return a context with these authorities, or None for the usual ones."""
    if certificates is None:
        return None
    path = Path(certificates)
    return ssl.create_default_context(cafile=None if path.is_dir() else path, capath=path if path.is_dir() else None)


def _shorten(error: BaseException) -> str:
    return sanitize_line(first_line(error), 200)
