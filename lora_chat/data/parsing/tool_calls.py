"""Read the tool calls of a message and the function descriptions of a row."""

import json

from lora_chat.data.dialogue import InvalidDialogueError, ToolCall
from lora_chat.data.parsing.content import check_text, read_name
from lora_chat.system.strict_json import parse_strict_json


def read_calls(calls: object, where: str) -> tuple[ToolCall, ...]:
    """Parse the tool calls of a message."""
    if calls is None or calls == []:
        return ()
    if not isinstance(calls, list):
        raise InvalidDialogueError(f"{where}: `tool_calls` must be a list")
    return tuple(_read_call(call, where) for call in calls)


def _read_call(call: object, where: str) -> ToolCall:
    """Parse a tool call, given as OpenAI's object or as its function only."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if (
        not isinstance(call, dict)
        or not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or not function["name"]
    ):
        raise InvalidDialogueError(f"{where}: a tool call needs a function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_strict_json(arguments or "{}")
        except ValueError as error:
            raise InvalidDialogueError(f"{where}: the arguments of {function['name']!a}: {error}") from None
    if not isinstance(arguments, dict):
        raise InvalidDialogueError(f"{where}: the arguments of {function['name']!a} are not a JSON object")
    return ToolCall(
        check_text(function["name"], where),
        _dump_json(arguments, f"{where}: the arguments of {function['name']!a}"),
        read_name(call, "id", where),
    )


def read_tools(tools: object) -> str | None:
    """Return the JSON text of the function descriptions, given as a list or as JSON text; None if there are none."""
    if isinstance(tools, str):
        try:
            tools = parse_strict_json(tools) if tools.strip() else None
        except ValueError as error:
            raise InvalidDialogueError(f"`tools` {error}") from None
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidDialogueError("`tools` must be a list of function descriptions")
    return _dump_json(tools, "`tools`")


def _dump_json(value: object, where: str) -> str:
    """Return a value as JSON text; raises InvalidDialogueError for dates and bytes, which Parquet can contain."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidDialogueError(f"{where} cannot be written as JSON: {error}") from None
    return check_text(text, where)
