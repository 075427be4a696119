"""Headers that every answer has."""

from collections.abc import Iterable

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
)
"""Headers of an answer that does not set them itself; the page sets a policy that allows its own files."""
_REMOVED = frozenset([b"server", b"x-powered-by"])


def complete_headers(
    headers: Iterable[tuple[bytes, bytes]], further: Iterable[tuple[bytes, bytes]] = ()
) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with the security headers that it lacks."""
    original = [(name, value) for name, value in headers if name.lower() not in _REMOVED]
    names = {name.lower() for name, _ in original}
    return [*original, *(pair for pair in SECURITY_HEADERS if pair[0] not in names), *further]
