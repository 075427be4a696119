"""Errors in the form of OpenAI's API."""

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.requests import Request


class ApiError(Exception):
    """An error that a client gets as JSON."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        parameter: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.parameter, self.code = status, message, kind, parameter, code

    def as_dict(self) -> dict[str, object]:
        """Return the body of the answer."""
        error = {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code}
        return {"error": error}


async def answer_api_error(request: "Request", error: Exception) -> JSONResponse:
    """Return the answer for an ApiError."""
    assert isinstance(error, ApiError)
    return JSONResponse(error.as_dict(), error.status)
