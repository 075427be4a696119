"""The body of a request -> a checked request, or an error that names the field."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from lora_chat.config.base import StrictModel
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.openai.request_fields import drop_neutral_fields
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.strict_json import parse_strict_json

Request = TypeVar("Request", bound=StrictModel)

_MAX_SHOWN_CHARACTERS = 60


def parse_body(body: bytes, kind: type[Request]) -> Request:
    """Return a request. Raise ApiError for wrong JSON, and for fields that are unknown, not supported or wrong."""
    try:
        value = parse_strict_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8 text (byte {error.start}).", code="invalid_json") from error
    except ValueError as error:
        raise ApiError(400, f"The body {error}.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "The body is not a JSON object.", code="invalid_json")
    fields = drop_neutral_fields(value, kind.model_fields.keys())
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _explain(error, fields) from error


def _explain(error: ValidationError, value: Mapping[str, object]) -> ApiError:
    """Return the error for the first wrong field."""
    # Of a union, the error that goes deepest into the value names the wrong part.
    first = max(error.errors(include_url=False), key=lambda fault: len(_path(fault["loc"], value)))
    parameter = _format_path(_path(first["loc"], value)) or None
    message = sanitize_line(str(first["msg"]).removeprefix("Value error, "), 300)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown field: {parameter}", parameter=parameter, code="unknown_parameter")
    if parameter is None:  # a check of several fields, whose message begins with the name of one
        name = message.partition(" ")[0]
        return ApiError(400, f"{message}.", parameter=name if name in value else None, code="invalid_value")
    return ApiError(400, f"{parameter}: {message}.", parameter=parameter, code="invalid_value")


def show_name(name: str) -> str:
    """Return a name from a request as one short line."""
    return sanitize_line(name, _MAX_SHOWN_CHARACTERS)


def _path(location: Sequence[int | str], value: object) -> list[int | str]:
    """Return the keys and numbers of a location in the request, without the names of types that pydantic adds."""
    path: list[int | str] = []
    for step in location:
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            path.append(step)
            value = value[step]
        elif isinstance(step, str) and isinstance(value, Mapping):
            path.append(step)
            value = value.get(step)
    return path


def _format_path(path: Sequence[int | str]) -> str:
    steps = [f"[{step}]" if isinstance(step, int) else f".{show_name(step)}" for step in path]
    return "".join(steps).removeprefix(".")
