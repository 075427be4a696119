"""Errors in the form of OpenAI's API."""

import math
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lora_chat.serving.request_record import record_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

BUSY_STATUSES = (429, 503)
"""Statuses after which a client may ask again, so that they have a Retry-After header."""
_DEFAULT_RETRY_SECONDS = 1
_MAX_RETRY_SECONDS = 120
_HTTP_MESSAGES = {
    404: "There is no such route.",
    405: "The route does not have this method.",
}


class ApiError(Exception):
    """An error that a client gets as JSON."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        parameter: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: "Mapping[str, str] | None" = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.parameter, self.code = status, message, kind, parameter, code
        self.retry_after = retry_after
        """Seconds after which the client may ask again; None leaves it to the handler."""
        self.headers = dict(headers or {})

    def as_dict(self) -> dict[str, object]:
        """Return the body of the answer."""
        error = {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code}
        return {"error": error}

    def as_response(self, retry_after: float = _DEFAULT_RETRY_SECONDS) -> JSONResponse:
        """Return the answer. `retry_after` is used if the error itself names no time."""
        headers = dict(self.headers)
        if self.status in BUSY_STATUSES:
            seconds = retry_after if self.retry_after is None else self.retry_after
            headers["retry-after"] = str(round_retry_seconds(seconds))
        return JSONResponse(self.as_dict(), self.status, headers)


def round_retry_seconds(seconds: float) -> int:
    """Return whole seconds from 1 to two minutes."""
    return max(1, min(_MAX_RETRY_SECONDS, math.ceil(seconds)))


def internal_error() -> ApiError:
    """Return the error for a fault of the server; its cause is only in the log."""
    return ApiError(503, "The server could not answer because of a fault.", "server_error", code="internal_error")


async def answer_api_error(request: "Request", error: Exception) -> JSONResponse:
    """Return the answer for an ApiError; a busy server computes the time from its throughput."""
    assert isinstance(error, ApiError)
    record_of(request).refused = error.code or f"status_{error.status}"
    telemetry = getattr(request.app.state, "telemetry", None)
    return error.as_response(telemetry.retry_seconds() if telemetry is not None else _DEFAULT_RETRY_SECONDS)


async def answer_http_error(request: "Request", error: Exception) -> JSONResponse:
    """Return the answer for an error of the router: no such route, or no such method."""
    assert isinstance(error, HTTPException)
    message = _HTTP_MESSAGES.get(error.status_code, str(error.detail))
    code = "not_found" if error.status_code == 404 else None
    return ApiError(error.status_code, message, code=code, headers=error.headers).as_response()


async def answer_internal_error(request: "Request", error: Exception) -> JSONResponse:
    """Return the answer for a fault of the server, without its text."""
    return internal_error().as_response()


ERROR_HANDLERS = {
    ApiError: answer_api_error,
    HTTPException: answer_http_error,
    Exception: answer_internal_error,
}
"""Handler of each kind of error that a route raises."""
