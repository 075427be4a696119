"""A one-time token and a key, without which nobody votes.

Any user of this machine can connect to a loopback address. The link on the terminal therefore has a random token in its
fragment, which a browser sends to no server. A browser's command line, and with it the link, is visible to other users;
so the first exchange of the token for a key spends it, and a second one is refused.
"""

import hmac
import secrets
import threading
from collections.abc import Callable

_TOKEN_BYTES = 24
_MAX_KEYS = 32
"""Largest number of keys, one for each exchanged link; the oldest ends first."""


class JudgeAccess:
    """The token of the next link, and the keys of the pages that were opened."""

    def __init__(self, announce: Callable[[str], None] = lambda fragment: None) -> None:
        self._announce = announce
        """Function that shows a fragment, `#judge=TOKEN`, to the user."""
        self._lock = threading.Lock()
        self._token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._keys: list[str] = []

    @property
    def fragment(self) -> str:
        """Return the fragment of the next link."""
        return f"#judge={self._token}"

    def exchange(self, token: str) -> str | None:
        """Return a key for the token and make another token; None for a wrong or spent one."""
        with self._lock:
            if not _is_equal(token, self._token):
                return None
            self._token = secrets.token_urlsafe(_TOKEN_BYTES)
            key = secrets.token_urlsafe(_TOKEN_BYTES)
            self._keys = [*self._keys[1 - _MAX_KEYS :], key]
        self._announce(self.fragment)
        return key

    def is_key(self, key: str) -> bool:
        """Return whether a key came from this object."""
        with self._lock:
            keys = list(self._keys)
        matches = [_is_equal(key, known) for known in keys]  # all of them, so that the time shows nothing
        return any(matches)


def _is_equal(text: str, known: str) -> bool:
    """Return whether two texts are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(text.encode("utf-8", "surrogatepass"), known.encode())
