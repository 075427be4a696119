"""Fields of OpenAI's API and of common clients that the routes do not use: one table.

A field of this table is accepted if its value asks for nothing, and refused by name otherwise.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lora_chat.serving.api_errors import ApiError


@dataclass(frozen=True)
class UnusedField:
    """A field that the routes do not use; one entry of `UNUSED_FIELDS`."""

    name: str
    reason: str
    """Why another value is refused; empty if every value of the type is accepted."""
    neutral: tuple[object, ...] = ()
    """Values that ask for nothing, beside null."""
    accepts: type | None = None
    """Type whose values are all accepted."""


_ONLY_TWO = "sampling is set by temperature, top_p and seed"
_NOT_STORED = "nothing is stored"
_TEXT_ONLY = "replies are text"

UNUSED_FIELDS = (
    UnusedField("user", "", accepts=str),
    UnusedField("metadata", "", accepts=dict),
    UnusedField("safety_identifier", "", accepts=str),
    UnusedField("prompt_cache_key", "", accepts=str),
    UnusedField("store", _NOT_STORED, (False,)),
    UnusedField("frequency_penalty", _ONLY_TWO, (0,)),
    UnusedField("presence_penalty", _ONLY_TWO, (0,)),
    UnusedField("repetition_penalty", _ONLY_TWO, (1,)),
    UnusedField("logit_bias", _ONLY_TWO, ({},)),
    UnusedField("top_k", _ONLY_TWO, (0, -1)),
    UnusedField("min_p", _ONLY_TWO, (0,)),
    UnusedField("best_of", "use n", (1,)),
    UnusedField("suffix", "text is continued, not filled in", ("",)),
    UnusedField("response_format", "the form of a reply cannot be forced", ({"type": "text"},)),
    UnusedField("parallel_tool_calls", "the number of calls cannot be forced", (True,)),
    UnusedField("functions", "use tools", ([],)),
    UnusedField("function_call", "use tool_choice", ("none", "auto")),
    UnusedField("modalities", _TEXT_ONLY, (["text"],)),
    UnusedField("audio", _TEXT_ONLY),
    UnusedField("prediction", "predicted text is not used"),
    UnusedField("web_search_options", "the server reads nothing from the network"),
    UnusedField("service_tier", "there is one tier", ("auto", "default")),
    UnusedField("verbosity", "the length of a reply cannot be forced", ("medium",)),
    UnusedField("echo", "a chat reply does not repeat its prompt", (False,)),
    UnusedField("documents", "put documents into the text of a message", ([],)),
    UnusedField("chat_template", "the template is the one of training"),
    UnusedField("add_generation_prompt", "every prompt opens a reply", (True,)),
    UnusedField("continue_final_message", "every prompt opens a new reply", (False,)),
)
"""Every known field that no route, or not every route, uses."""
_BY_NAME = {field.name: field for field in UNUSED_FIELDS}


def drop_neutral_fields(value: Mapping[str, object], used: Collection[str]) -> dict[str, object]:
    """Return the fields of a request that its route uses. Raise ApiError for a field that asks for something else.

    A field that is null counts as absent. Unknown fields are refused by the model of the request.
    """
    fields: dict[str, object] = {}
    for name, content in value.items():
        known = _BY_NAME.get(name)
        if name in used or known is None:
            if content is not None or name not in used:
                fields[name] = content
        elif content is not None and not _is_neutral(content, known):
            raise _unsupported(known)
    return fields


def _is_neutral(content: object, field: UnusedField) -> bool:
    """Return whether a value asks for nothing."""
    if field.accepts is not None:
        return isinstance(content, field.accepts)
    return any(
        content == neutral and isinstance(content, bool) == isinstance(neutral, bool) for neutral in field.neutral
    )


def _unsupported(field: UnusedField) -> ApiError:
    """Return the error for a field that the server cannot follow."""
    if field.accepts is not None:
        return ApiError(400, f"{field.name} has the wrong type.", parameter=field.name, code="invalid_type")
    return ApiError(
        400, f"{field.name} is not supported: {field.reason}.", parameter=field.name, code="unsupported_parameter"
    )
