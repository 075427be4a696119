"""The messages and tools of a request -> messages and tools of the chat template, checked like training data."""

import re
from collections.abc import Mapping, Sequence

from lora_chat.data.dialogue import ChatMessage, InvalidDialogueError, Message, ToolDescription
from lora_chat.data.parsing.checked_text import REASONING_KEYS, check_text, read_name, read_reasoning
from lora_chat.data.parsing.tool_calls import read_calls, read_tools
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.openai.chat_request import MessageRequest
from lora_chat.serving.openai.request_body import show_name
from lora_chat.serving.server_options import ServerOptions

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOOL_KEYS, _FUNCTION_KEYS = {"type", "function"}, {"name", "description", "parameters", "strict"}


def read_messages(requests: Sequence[MessageRequest], options: ServerOptions) -> list[ChatMessage]:
    """Return the messages in the form of chat templates. Raise ApiError for one that training would refuse too."""
    if len(requests) > options.max_messages:
        raise ApiError(
            400,
            f"The conversation has {len(requests):,} messages, and at most {options.max_messages:,} are accepted.",
            parameter="messages",
            code="too_many_messages",
        )
    return [_read_message(request, number) for number, request in enumerate(requests)]


def _read_message(request: MessageRequest, number: int) -> ChatMessage:
    where = f"messages[{number}]"
    try:
        text = check_text(_read_content(request, where), where)
        calls = read_calls([call.model_dump(exclude_none=True) for call in request.tool_calls or ()], where)
        role = "system" if request.role == "developer" else request.role
        reasoning = read_reasoning(request.model_dump(include=set(REASONING_KEYS)), where)
        if role != "assistant" and (calls or reasoning):
            raise InvalidDialogueError(f"{where}: only the assistant has tool calls and reasoning")
        if role in ("user", "assistant") and not text.strip() and not calls:
            raise InvalidDialogueError(f"{where} ({role}) is empty")
        names = {"name": request.name, "tool_call_id": request.tool_call_id}
        message = Message(
            role,
            text,
            reasoning,
            calls,
            name=read_name(names, "name", where),
            tool_call_id=read_name(names, "tool_call_id", where),
        )
    except InvalidDialogueError as error:
        raise ApiError(400, f"{error}.", parameter=where, code="invalid_message") from error
    return message.as_dict


def _read_content(request: MessageRequest, where: str) -> str:
    """Return the text of a message. Raise ApiError for a part that is not text; nothing is fetched."""
    if request.content is None:
        if request.role == "assistant" and request.tool_calls:
            return ""
        raise ApiError(400, f"{where} has no content.", parameter=f"{where}.content", code="invalid_message")
    if isinstance(request.content, str):
        return request.content
    return "".join(_read_part(part, f"{where}.content[{n}]") for n, part in enumerate(request.content))


def _read_part(part: Mapping[str, object], where: str) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        name = show_name(kind) if isinstance(kind, str) else "none"
        raise ApiError(
            400,
            f"{where}: a part of the type {name} is not supported: the model reads text only, and nothing is fetched.",
            parameter=where,
            code="unsupported_content",
        )
    if not isinstance(text, str) or part.keys() != {"type", "text"}:
        raise ApiError(400, f"{where}: a part of the type text has `text` and nothing else.", parameter=where)
    return text


def read_tool_choice(choice: object) -> bool:
    """Return whether the tools may be called. Raise ApiError for a call that should be forced."""
    if choice in (None, "auto", "none"):
        return choice != "none"
    raise ApiError(
        400,
        "tool_choice: only auto and none are supported, because a call cannot be forced on the model.",
        parameter="tool_choice",
        code="unsupported_parameter",
    )


def read_request_tools(tools: Sequence[Mapping[str, object]] | None, options: ServerOptions) -> list[ToolDescription]:
    """Return the tools in the form of chat templates. Raise ApiError for one that is no function description."""
    if not tools:
        return []
    if len(tools) > options.max_tools:
        raise ApiError(
            400,
            f"The request has {len(tools):,} tools, and at most {options.max_tools:,} are accepted.",
            parameter="tools",
            code="too_many_tools",
        )
    checked = [_check_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    names = [tool_name(tool) for tool in checked]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _tool_error(f"two tools have the name {twice}", "tools")
    try:
        text = read_tools(checked)
    except InvalidDialogueError as error:
        raise _tool_error(str(error), "tools") from error
    if text is not None and len(text) > options.max_tool_characters:
        raise ApiError(
            400,
            f"The tools have {len(text):,} characters as JSON; at most {options.max_tool_characters:,} are accepted.",
            parameter="tools",
            code="too_many_tools",
        )
    return checked


def tool_name(tool: ToolDescription) -> str:
    """Return the name of a checked tool."""
    return str(tool["function"]["name"])


def _check_tool(tool: Mapping[str, object], where: str) -> ToolDescription:
    """Return a tool with its keys in their order, without `strict`, which cannot be followed."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping) or tool.keys() != _TOOL_KEYS:
        raise _tool_error("a tool is an object with the type `function` and a `function`", where)
    unknown = next((key for key in function if key not in _FUNCTION_KEYS), None)
    if unknown is not None:
        raise _tool_error(f"unknown field {show_name(unknown)}", f"{where}.function")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or _TOOL_NAME.fullmatch(name) is None:
        raise _tool_error("a name has 1 to 64 letters, digits, and `_`, `-` or `.`", f"{where}.function.name")
    if not isinstance(function.get("description"), str | None):
        raise _tool_error("it is a text", f"{where}.function.description")
    if not isinstance(parameters, Mapping | None):
        raise _tool_error("it is a JSON schema", f"{where}.function.parameters")
    if function.get("strict") not in (None, False):
        raise _tool_error("a schema cannot be forced on the model", f"{where}.function.strict")
    description = {key: value for key, value in function.items() if key != "strict" and value is not None}
    return {**tool, "function": description}


def _tool_error(reason: str, where: str) -> ApiError:
    return ApiError(400, f"{where}: {reason}.", parameter=where, code="invalid_tool")
