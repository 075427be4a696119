"""Check of the page that a request comes from, so that no other page in the user's browser can act here."""

import re
from collections.abc import Mapping

from lora_chat.errors import UsageError
from lora_chat.serving.api_errors import ApiError

READING_METHODS = frozenset(["GET", "HEAD"])
"""Methods that change nothing."""
_ORIGIN = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{2,45}\](?::[0-9]{1,5})?|[a-z0-9._-]{1,255}(?::[0-9]{1,5})?)"
)
_SAME_SITE_VALUES = frozenset(["same-origin", "none"])
"""Values of Sec-Fetch-Site for the server's own page, and for an address that the user typed."""
_PREFLIGHT_SECONDS = "600"


def parse_allowed_origin(text: str) -> str:
    """Return an origin of `--allow-origin`. Raise UsageError for anything else, such as `*`, `null` or a path."""
    origin = text.lower()
    if _ORIGIN.fullmatch(origin) is None:
        raise UsageError(
            f"--allow-origin {text} is not an origin. Fix: write scheme, name and port only, such as "
            "--allow-origin https://chat.example.org or --allow-origin http://localhost:3000."
        )
    return origin


def check_origin(method: str, headers: Mapping[bytes, str], allowed: tuple[str, ...]) -> None:
    """Raise ApiError for a request that a script of another page makes."""
    origin = headers.get(b"origin")
    if origin is not None:
        if origin.lower() in allowed:
            return
        match = _ORIGIN.fullmatch(origin.lower())
        if match is None or match["host"] != headers.get(b"host", "").lower():
            raise _refusal()
    site = headers.get(b"sec-fetch-site")
    if method not in READING_METHODS and site is not None and site.lower() not in _SAME_SITE_VALUES:
        raise _refusal()


def cors_headers(headers: Mapping[bytes, str], allowed: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    """Return the headers that let an allowed page read the answer; none for any other page."""
    if not allowed:
        return []
    origin = headers.get(b"origin", "").lower()
    vary = [(b"vary", b"origin")]
    return [(b"access-control-allow-origin", origin.encode("ascii")), *vary] if origin in allowed else vary


def preflight_headers(headers: Mapping[bytes, str], allowed: tuple[str, ...]) -> dict[str, str] | None:
    """Return the further headers of the answer to a browser that asks whether a page may ask; None if it may not."""
    if headers.get(b"origin", "").lower() not in allowed or b"access-control-request-method" not in headers:
        return None
    return {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": "authorization, content-type",
        "access-control-max-age": _PREFLIGHT_SECONDS,
    }


def _refusal() -> ApiError:
    return ApiError(
        403,
        "Another page may not ask here. If it is yours, start the server with --allow-origin and its origin.",
        "permission_error",
        code="origin_not_allowed",
    )
