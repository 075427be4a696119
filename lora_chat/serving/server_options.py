"""Every limit and switch of a server; the command line is derived from this table."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_chat.serving.reply_filter.filter_settings import FilterSettings


def _limit(default: float, help_text: str) -> float:
    """Return a field that the command line offers as a flag of the same name, with this help text."""
    number: float = field(default=default, metadata={"help": help_text})
    return number


def _count(default: int, help_text: str) -> int:
    """Return a field with an integer that the command line offers as a flag of the same name."""
    number: int = field(default=default, metadata={"help": help_text})
    return number


@dataclass(frozen=True)
class ServerOptions:
    """Limits and switches of a server."""

    host: str = "127.0.0.1"
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    key_file: Path | None = None
    """File with one key a line. None is allowed only on a loopback address."""
    allow_hosts: tuple[str, ...] = ()
    """Further names, with or without a port, by which clients may address the server."""
    allow_origins: tuple[str, ...] = ()
    """Origins of other pages whose scripts may ask."""
    log_content: Path | None = None
    """File for prompts and replies; `-` is stderr, and None logs none."""
    reply_filter: "FilterSettings | None" = None
    """Settings of the filter for replies; None filters nothing."""

    # What a request may ask for.
    max_new_tokens: int = _count(1024, "largest number of tokens of a reply")
    max_messages: int = _count(256, "largest number of messages of a conversation")
    max_choices: int = _count(4, "largest `n`, the number of replies to one request")
    max_tools: int = _count(128, "largest number of tools of a request")
    max_tool_characters: int = _count(2**18, "largest size of all tools as JSON, in characters")
    max_stop_texts: int = _count(4, "largest number of stop strings")
    max_stop_characters: int = _count(200, "longest stop string, in characters")
    max_body_bytes: int = _count(2**20, "largest request body, in bytes")
    max_header_bytes: int = _count(16384, "largest request line with its headers, in bytes")

    # How many at once.
    max_connections: int = _count(256, "largest number of open connections")
    max_requests: int = _count(96, "largest number of requests that wait or are answered at the same time")
    max_running: int = _count(16, "largest number of replies that are generated together")
    max_waiting: int = _count(64, "largest number of replies that wait to be generated")

    # How long, in seconds.
    request_seconds: float = _limit(600.0, "longest time of a reply, with its time in the queue")
    header_seconds: float = _limit(10.0, "longest time of the headers of a request")
    body_seconds: float = _limit(30.0, "longest time of the body of a request")
    write_seconds: float = _limit(30.0, "longest time in which a client accepts nothing of a reply")
    idle_seconds: float = _limit(30.0, "longest time between two requests of a connection")
    grace_seconds: float = _limit(10.0, "time that running replies have after a signal to stop")


@dataclass(frozen=True)
class LimitFlag:
    """A limit that the command line offers."""

    name: str
    default: float
    help_text: str

    @property
    def is_count(self) -> bool:
        """Return whether the limit is an integer."""
        return isinstance(self.default, int)


LIMITS = tuple(
    LimitFlag(limit.name, limit.default, limit.metadata["help"])  # type: ignore[arg-type]  # numbers, see above
    for limit in fields(ServerOptions)
    if "help" in limit.metadata
)
"""Limits of ServerOptions in their order."""
