"""Every limit and switch of a server."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerOptions:
    """Limits and switches of a server."""

    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None
    max_new_tokens: int = 1024
    """Largest number of tokens of a reply."""
    max_body_bytes: int = 2**20
    max_messages: int = 256
    max_choices: int = 4
    """Largest `n` of a request."""
    max_stop_texts: int = 4
    max_stop_characters: int = 200
    request_seconds: float = 600.0
    """Time after which a reply ends."""
    grace_seconds: float = 10.0
    """Time that running replies have after a signal to stop."""
