"""Headers of a request, each of which may be there only once if it decides something."""

from typing import TYPE_CHECKING

from lora_chat.serving.api_errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Scope

_SINGLE = frozenset(
    [b"host", b"authorization", b"origin", b"content-type", b"content-length", b"transfer-encoding", b"sec-fetch-site"]
)


_VERSIONS = frozenset(["1.0", "1.1"])


def read_headers(scope: "Scope", max_bytes: int) -> dict[bytes, str]:
    """Return the headers by lower-case name. Raise ApiError if one that decides something is there twice.

    h11 checks the length only while headers are incomplete, so it is checked here again.
    """
    if scope["http_version"] not in _VERSIONS:
        raise ApiError(400, "The version of HTTP is neither 1.0 nor 1.1.", code="bad_version")
    size = len(scope["raw_path"]) + len(scope["query_string"])
    if size + sum(len(name) + len(value) for name, value in scope["headers"]) > max_bytes:
        raise ApiError(431, f"The headers are longer than {max_bytes:,} bytes.", code="headers_too_long")
    headers: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in headers and name in _SINGLE:
            raise ApiError(400, f"The header {name.decode('ascii')} is there twice.", code="repeated_header")
        headers.setdefault(name, value.decode("latin-1"))
    return headers
