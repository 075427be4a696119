"""Strict models of the requests of a judge."""

from typing import Annotated, TypeVar

from pydantic import StringConstraints, ValidationError
from starlette.requests import Request

from lora_chat.config.base import StrictModel
from lora_chat.runs.judgement_record import Choice, NoteText
from lora_chat.serving.api_errors import ApiError

MAX_BODY_BYTES = 1 << 15
"""Largest size of a request, in bytes: a note of the greatest length in escapes."""
KEY_HEADER = "x-judge-key"
"""Header with the key of a page. Pages of other origins cannot send it without a permission that nobody gives."""
_SecretText = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_-]+$")]


class EnterRequest(StrictModel):
    """A request to exchange the token of a link for a key."""

    token: _SecretText


class VoteRequest(StrictModel):
    """A vote on a pair that the server showed."""

    pair: _SecretText
    choice: Choice
    note: NoteText = ""


class EmptyRequest(StrictModel):
    """A request without content."""


_Body = TypeVar("_Body", bound=StrictModel)


async def read_request(request: Request, model: type[_Body]) -> _Body:
    """Return the body of a request. Raise ApiError if it is too large or not of this model."""
    raw = b""
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise ApiError(413, f"The request has more than {MAX_BODY_BYTES:,} bytes.")
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        parameter = ".".join(str(part) for part in first["loc"])[:100] or None
        raise ApiError(400, f"The request cannot be read: {first['msg'][:300]}", parameter=parameter) from error
