"""Requests to one HTTP endpoint that the user named, with limits; its answers are a stranger's."""

import ipaddress
import json
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from lora_chat.errors import UnavailableError, UsageError
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.strict_json import parse_strict_json

_MAX_ANSWER_BYTES = 16_000_000
_CONNECT_SECONDS, _IDLE_SECONDS = 10.0, 120.0
_MAX_REQUEST_SECONDS = 300.0
_MAX_URL_CHARACTERS = 2_000


@dataclass(frozen=True)
class HttpAnswer:
    """The status and the JSON of an answer."""

    status: int
    value: object
    """None if the answer is not strict JSON."""
    retry_after: float = 0.0
    """Seconds to wait, as the endpoint asks; 0 if it does not."""

    @property
    def is_good(self) -> bool:
        """Return whether the endpoint did what it was asked to do."""
        return self.status == 200 and self.value is not None


@dataclass(frozen=True)
class HttpEndpoint:
    """An address without path of a request, and the key that is sent to it."""

    url: str
    is_local: bool
    """Whether it is on this machine."""
    key: str | None = None

    def get(self, path: str) -> HttpAnswer:
        """Return the answer to GET. Raises UnavailableError if none exists."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: object) -> HttpAnswer:
        """Return the answer to POST with JSON. Raises UnavailableError if none exists."""
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, content: bytes | None) -> HttpAnswer:
        """Send a request: no proxy of the environment, no redirect, no compressed and no endless answer."""
        import httpx2

        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Content-Type": "application/json"} if content is not None else {}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = httpx2.Timeout(_IDLE_SECONDS, connect=_CONNECT_SECONDS)
        shown = sanitize_line(self.url + path, 200)
        try:
            with (
                httpx2.Client(trust_env=False, follow_redirects=False, timeout=timeout) as client,
                client.stream(method, self.url + path, content=content, headers=headers) as response,
            ):
                if 300 <= response.status_code < 400:
                    raise UnavailableError(f"{shown} redirects to another address, which is not followed.")
                if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
                    raise UnavailableError(f"{shown} sent a compressed answer, which was not asked for.")
                body, end = bytearray(), time.monotonic() + _MAX_REQUEST_SECONDS
                for part in response.iter_raw():
                    body += part
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise UnavailableError(f"{shown} sent more than {_MAX_ANSWER_BYTES:,} bytes.")
                    if time.monotonic() > end:
                        raise UnavailableError(f"{shown} did not end its answer in {_MAX_REQUEST_SECONDS:.0f} s.")
                return HttpAnswer(
                    response.status_code, _parse(bytes(body)), _read_seconds(response.headers.get("Retry-After", ""))
                )
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            reason = sanitize_line(str(error) or type(error).__name__, 200)
            raise UnavailableError(
                f"{shown} does not answer: {reason}. Fix: start the server, or name another."
            ) from error


def open_endpoint(url: str, key: str | None, *, allow_remote: bool, sent: str) -> HttpEndpoint:
    """Return a checked endpoint. `sent` names what would leave this machine.

    Raises UsageError for an address that cannot be used, or that is on another machine without the user's consent.
    """
    problem = "Fix: write it as http://127.0.0.1:8000."
    if len(url) > _MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"The address of the endpoint is not a URL. {problem}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"The address of the endpoint is not a URL ({error}). {problem}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"The endpoint needs http:// or https:// and a host. {problem}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("The address of the endpoint has a user, a query or a fragment. Fix: use --key-file FILE.")
    is_local = is_loopback_host(host)
    if not is_local and not allow_remote:
        raise UsageError(
            f"{sanitize_line(host, 100)} is another machine, and {sent} would be sent there. "
            "Fix: add --allow-remote if they may leave this machine."
        )
    if not is_local and parts.scheme == "http" and key:
        raise UsageError("The key is not sent unencrypted to another machine. Fix: use https://.")
    return HttpEndpoint(url.rstrip("/"), is_local, key)


def is_loopback_host(host: str) -> bool:
    """Return whether a name or an address is this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _parse(body: bytes) -> object:
    try:
        value: object = parse_strict_json(body.decode("utf-8"))
    except ValueError:
        return None
    return value


def _read_seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
