"""Headers of a request, each of which may be there only once if it decides something."""

from typing import TYPE_CHECKING

from lora_chat.serving.api_errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Scope

_SINGLE = frozenset(
    [b"host", b"authorization", b"origin", b"content-type", b"content-length", b"transfer-encoding", b"sec-fetch-site"]
)


def read_headers(scope: "Scope") -> dict[bytes, str]:
    """Return the headers by lower-case name. Raise ApiError if one that decides something is there twice."""
    headers: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in headers and name in _SINGLE:
            raise ApiError(400, f"The header {name.decode('ascii')} is there twice.", code="repeated_header")
        headers.setdefault(name, value.decode("latin-1"))
    return headers
