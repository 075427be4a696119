"""Figures of one request for its log line and the metrics; the routes fill in what they know."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope

_KEY = "lora_chat.record"


@dataclass
class RequestRecord:
    """Figures of one request, without any of its text."""

    model: str | None = None
    """Name of an admitted model, never a name that a client made up, because it labels the metrics."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_at: float | None = None
    """Time of the first token of a reply, from `time.monotonic`, in seconds."""
    finish: str | None = None
    """Reason why the reply ended."""
    refused: str | None = None
    """Reason for which a guard refused the request."""
    started: float = field(default_factory=time.monotonic)

    def note_token(self) -> None:
        """Count a token of a reply, and remember the time of the first one."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.completion_tokens += 1


def start_record(scope: "Scope") -> RequestRecord:
    """Create the record of a request and put it into the request's scope."""
    record = RequestRecord()
    scope[_KEY] = record
    return record


def record_of(request: "Request") -> RequestRecord:
    """Return the record of a request, for a route that adds its model and tokens."""
    return record_of_scope(request.scope)


def record_of_scope(scope: "Scope") -> RequestRecord:
    """Return the record of a request from its scope; a new one if no guard made it, as in tests of one route."""
    record = scope.setdefault(_KEY, RequestRecord())
    assert isinstance(record, RequestRecord)
    return record
