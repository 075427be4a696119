"""Checks of every HTTP request and response of huggingface_hub.

`install_guard` installs an HTTP client with the library's public `set_client_factory`. Its event hooks see all
requests, including those after a redirect, and all responses before the library does. A refused response raises an
error, and the library keeps no part of it.
"""

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.system.hub_answers import check_commit, check_etag, check_size, parse_checked_json, refused_response
from lora_chat.system.hub_origin import Origin, check_redirect_target, is_unencrypted
from lora_chat.system.sanitize import sanitize_line

logger = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 32_000_000
"""Largest response of the hub's API, in bytes; a page of a listing has 0.3 MB."""
MAX_OTHER_BODY_BYTES = 1_000_000
"""Largest body of a redirect, an error or a response to an upload, in bytes."""
MAX_RESPONSES = 2_000
"""Largest number of responses of the API in one operation, so that every listing ends."""
MAX_TOTAL_RESPONSE_BYTES = 8 * MAX_RESPONSE_BYTES
"""Largest size of all responses of the API in one operation, in bytes."""
MAX_RETRY_AFTER_SECONDS = 310
"""Longest accepted `Retry-After`, in seconds; the hub counts requests in windows of 300 seconds."""
_MAX_REDIRECTS = 8
_MAX_DOWNLOAD_ATTEMPTS = 4  # a resumed download may receive this multiple of its size
_TIMEOUT_SECONDS = 30.0  # without a byte
_UPLOAD_TIMEOUT_SECONDS = 300.0  # the hub stores a commit before it answers
_GRACE_SECONDS, _MIN_BYTES_PER_SECOND = 60.0, 4_000.0  # a body may take the grace period plus its size at this rate
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Xet is another protocol with other hosts; the library only prints the others.
_IGNORED_HEADERS = ("x-xet-hash", "x-xet-refresh-route", "x-hf-warning", "content-disposition")


@dataclass(frozen=True)
class ExpectedFile:
    """A file of a commit that may be downloaded, with its largest size in bytes."""

    name: str
    limit: int
    commit: str | None


class HubGuard:
    """The checks, with the files that are expected in the current operation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, ExpectedFile] = {}
        self._received_bytes: dict[str, int] = {}
        self._response_count = self._response_bytes = 0
        self._warned = False

    def expect_files(self, files: Mapping[str, ExpectedFile]) -> None:
        """Begin an operation that may download only these files, given by URL."""
        with self._lock:
            self._files = {str(httpx2.URL(url)): file for url, file in files.items()}
            self._received_bytes.clear()
            self._response_count = self._response_bytes = 0

    def check_request(self, request: httpx2.Request) -> None:
        """Refuse a forbidden target, and remove the token from requests to any host except the endpoint."""
        endpoint = Origin.of_endpoint()
        if not endpoint.is_same_origin(request.url):
            check_redirect_target(request.url, endpoint)
            request.headers.pop("Authorization", None)
        elif is_unencrypted(request.url) and "Authorization" in request.headers:
            raise UnavailableError(
                f"The token is not sent to {endpoint}: the connection is not encrypted, others could read it.\n"
                "Fix: set HF_ENDPOINT to an https:// address, or send no token: HF_HUB_DISABLE_IMPLICIT_TOKEN=1."
            )
        elif is_unencrypted(request.url) and not self._warned:
            self._warned = True
            logger.warning(f"The connection to {endpoint} is not encrypted: others could read and alter the downloads.")
        if request.method in ("GET", "HEAD"):
            request.headers["Accept-Encoding"] = "identity"  # so that the counted bytes are the bytes of the file
        reads = request.method in ("GET", "HEAD")
        longest = {"read": _TIMEOUT_SECONDS if reads else _UPLOAD_TIMEOUT_SECONDS}
        requested = request.extensions.get("timeout") or {}
        timeout = {
            kind: requested.get(kind) or longest.get(kind, _TIMEOUT_SECONDS) for kind in ("connect", "read", "write")
        }
        request.extensions = {**request.extensions, "timeout": {**timeout, "pool": requested.get("pool")}}

    def check_response(self, response: httpx2.Response) -> None:
        """Refuse an invalid response before the library uses it, and limit the size of its body."""
        request, headers = response.request, response.headers
        for name, value in headers.items():
            if _CONTROL_CHARACTERS.search(value):
                raise refused_response(f"its header {sanitize_line(name, 40)} contains control characters")
        for name in _IGNORED_HEADERS:
            headers.pop(name, None)
        if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise refused_response("it is compressed, which was not requested")
        _check_retry_after(response)
        file = self._files.get(str(request.url))
        if commit := headers.get("X-Repo-Commit"):
            check_commit(commit, file.commit if file else None)
        if request.method == "HEAD" and (tag := headers.get("X-Linked-Etag") or headers.get("ETag")):
            check_etag(tag)  # other ETags are not used, such as those of the API
        # The library downloads from the Location of a response to HEAD, whatever its status is.
        if response.has_redirect_location or (request.method == "HEAD" and "Location" in headers):
            self._check_redirect(response, file)
        self._limit_body(response, file)

    def _check_redirect(self, response: httpx2.Response, file: ExpectedFile | None) -> None:
        """Check the target of a redirect, and expect the same file there."""
        location = response.headers["Location"]
        if not location.isascii() or not location.isprintable():
            raise refused_response("the address of its redirect contains unprintable characters")
        try:
            target = response.request.url.join(location)
        except httpx2.InvalidURL as error:
            raise refused_response("the address of its redirect is invalid") from error
        endpoint = Origin.of_endpoint()
        if not endpoint.is_same_origin(target):
            check_redirect_target(target, endpoint)
        if file:
            with self._lock:
                self._files[str(target)] = file

    def _limit_body(self, response: httpx2.Response, file: ExpectedFile | None) -> None:
        """Limit the body to the expected size; read and check a response of the API."""
        request, headers = response.request, response.headers
        good = response.status_code < 300
        # A page of a listing may come from another host, and a file from a path of the API (`/api/resolve-cache/`).
        api = good and file is None and (request.method == "GET" or Origin.of_endpoint().is_api(request.url))
        limit = MAX_RESPONSE_BYTES if api else file.limit if file and good else MAX_OTHER_BODY_BYTES
        what = file.name if file else ""
        if file and (linked := headers.get("X-Linked-Size")):
            _check_limit(check_size(linked, what), what, limit)
        if (length := headers.get("Content-Length")) and (request.method != "HEAD" or good):
            _check_limit(check_size(length, what or "a response"), what, limit)
        if request.method == "HEAD":
            return
        remaining = limit
        if file and good:
            remaining = min(
                limit, _MAX_DOWNLOAD_ATTEMPTS * limit + MAX_OTHER_BODY_BYTES - self._received_bytes.get(what, 0)
            )
        response.stream = _BoundedStream(response.stream, self, what, remaining)
        if api:
            self._check_api_body(response)

    def _check_api_body(self, response: httpx2.Response) -> None:
        """Read a response of the API and check its JSON."""
        body = response.read()
        with self._lock:
            self._response_count += 1
            self._response_bytes += len(body)
        if self._response_count > MAX_RESPONSES or self._response_bytes > MAX_TOTAL_RESPONSE_BYTES:
            raise refused_response("its listing does not end")
        if response.request.method == "GET" or body[:1] in (b"{", b"["):
            parse_checked_json(body)

    def add_received_bytes(self, name: str, received: int) -> None:
        """Count the received bytes of a file over all attempts."""
        with self._lock:
            self._received_bytes[name] = self._received_bytes.get(name, 0) + received


class _BoundedStream(httpx2.SyncByteStream):
    """The body of a response that raises an error if it is longer or slower than allowed."""

    def __init__(self, stream: Any, guard: HubGuard, what: str, limit: int) -> None:
        self._stream, self._guard, self._what, self._limit = stream, guard, what, limit
        self.elapsed: Any = None

    def __iter__(self) -> Iterator[bytes]:
        received, started = 0, time.monotonic()
        for chunk in self._stream:
            received += len(chunk)
            self._guard.add_received_bytes(self._what, len(chunk))
            _check_limit(received, self._what, self._limit, "or more ")
            seconds = time.monotonic() - started
            if seconds > _GRACE_SECONDS + received / _MIN_BYTES_PER_SECOND:
                raise UnavailableError(
                    f"The hub sends {sanitize_line(self._what, 80)} too slowly: {received:,} bytes in {seconds:.0f} "
                    "seconds.\nTry again later, or name a local folder or files."
                )
            yield chunk

    def close(self) -> None:
        self._stream.close()
        self.elapsed = getattr(self._stream, "elapsed", None)


def _check_limit(size: int, what: str, limit: int, more: str = "") -> None:
    """Raise IntegrityError for a file `what` that is too large, or HubResponseError for another response."""
    if size <= max(limit, 0):
        return
    if not what:
        raise refused_response(f"it has {size:,} {more}bytes; {limit:,} are allowed")
    raise IntegrityError(
        f"{sanitize_line(what, 80)} from the hub has {size:,} {more}bytes; {limit:,} are allowed.\n"
        "No part of it was kept. Check HF_ENDPOINT, or name a local folder or files."
    )


def _check_retry_after(response: httpx2.Response) -> None:
    """Raise UnavailableError if an error response asks for a long wait; unreadable values are ignored."""
    if response.status_code < 400:
        return
    requested = [response.headers.get("Retry-After", "").strip()]
    if response.status_code == 429:
        requested += re.findall(r"\bt\s*=\s*(\d+)", response.headers.get("RateLimit", ""))
    for seconds in requested:
        if seconds.isdigit() and (len(seconds) > 9 or int(seconds) > MAX_RETRY_AFTER_SECONDS):
            raise UnavailableError(
                f"The hub refuses requests now and asks to wait for {sanitize_line(seconds, 20)} s (status "
                f"{response.status_code}).\nTry again later."
            )


_GUARD = HubGuard()
_INSTALLED = threading.Event()


def install_guard() -> HubGuard:
    """Return the guard of this process; the first call routes all requests of huggingface_hub through it."""
    if not _INSTALLED.is_set():
        from huggingface_hub import constants, set_client_factory

        constants.HF_HUB_DISABLE_XET = True  # its downloads would bypass this client
        set_client_factory(_make_client)
        _INSTALLED.set()
    return _GUARD


def _make_client() -> httpx2.Client:
    """Create the library's client with the hooks of the guard."""
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.max_redirects = _MAX_REDIRECTS
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _GUARD.check_request],
        "response": [_GUARD.check_response, *hooks.get("response", [])],
    }
    return client
