"""The conversation of a request -> the ids of its prompt, exactly as `chat` and the checks at the door render it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.encoding.thinking_switch import ThinkingValue
from lora_chat.errors import DataError, LoraChatError
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.openai.chat_request import ChatPromptRequest
from lora_chat.serving.openai.conversation import read_messages, read_request_tools, tool_name
from lora_chat.serving.openai.model_traits import traits_of
from lora_chat.serving.server_options import ServerOptions
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from lora_chat.data.dialogue import ToolDescription
    from lora_chat.pipeline.admitted_model import AdmittedModel

_MAX_REASON_CHARACTERS = 500
_EFFORTS: Mapping[str, ThinkingValue] = {"none": "off", "high": "on"}


def render_prompt(
    request: ChatPromptRequest,
    model: "AdmittedModel",
    options: ServerOptions,
    *,
    offers_tools: bool = True,
    add_generation_prompt: bool = True,
) -> "tuple[list[int], list[ToolDescription]]":
    """Return the ids of a prompt and its tools. Raise ApiError if training would refuse the conversation too.

    Raise LoraChatError if the template refuses it, for `explained_refusals`.
    """
    tools = read_request_tools(request.tools, options)
    if not offers_tools:
        tools = []
    messages = read_messages(request.messages, options)
    arguments = _read_arguments(request, model)

    def render(tools: "list[ToolDescription]") -> list[int]:
        return model.render_prompt(messages, tools or None, arguments, add_generation_prompt=add_generation_prompt)

    ids = render(tools)
    if tools and ids == render([]):
        raise _refuse("tools", "the chat template of this model leaves out tools, so the model would not see them")
    if tools and not traits_of(model).reads_calls:
        raise _refuse("tools", "calls in the form of this chat template are not read, so none would be a tool call")
    return ids, tools


@contextmanager
def explained_refusals(parameter: str) -> Iterator[None]:
    """Turn the errors of the chat template and the tokenizer into an ApiError for the field with the prompt."""
    try:
        yield
    except InvalidDialogueError as error:
        raise ApiError(400, f"{error}.", parameter=parameter, code="invalid_value") from error
    except DataError as error:
        reason = sanitize_line(str(error), _MAX_REASON_CHARACTERS)
        raise ApiError(400, f"{parameter}: {reason}.", parameter=parameter, code="invalid_prompt") from error
    except LoraChatError as error:  # the template or the tokenizer took too long
        reason = sanitize_line(str(error).partition(" Fix:")[0], _MAX_REASON_CHARACTERS)
        raise ApiError(400, f"{parameter}: {reason}", parameter=parameter, code="prompt_not_rendered") from error


def _read_arguments(request: ChatPromptRequest, model: "AdmittedModel") -> dict[str, object]:
    """Return the variables of the template for the switch for thoughts. Raise ApiError for a model without one."""
    wanted: dict[str, ThinkingValue] = {}
    enabled = request.chat_template_kwargs.enable_thinking if request.chat_template_kwargs else None
    if enabled is not None:
        wanted["chat_template_kwargs.enable_thinking"] = "on" if enabled else "off"
    if request.reasoning_effort is not None:
        if request.reasoning_effort not in _EFFORTS:
            raise _refuse("reasoning_effort", "only none and high are supported: thoughts are off or on")
        wanted["reasoning_effort"] = _EFFORTS[request.reasoning_effort]
    if not wanted:
        return {}
    name, value = next(iter(wanted.items()))
    if len(set(wanted.values())) > 1:
        raise _refuse("reasoning_effort", "it contradicts enable_thinking")
    switch = traits_of(model).switch
    if switch is None:
        raise _refuse(name, "the chat template of this model has no switch for thoughts")
    return switch.arguments(value)


def _refuse(name: str, reason: str) -> ApiError:
    """Return the error for a field that this model cannot follow."""
    return ApiError(400, f"{name}: {reason}.", parameter=name, code="unsupported_parameter")


def list_tool_names(tools: "list[ToolDescription]") -> frozenset[str] | None:
    """Return the names of tools that a reply may call; None if there are no tools."""
    return frozenset(map(tool_name, tools)) or None
