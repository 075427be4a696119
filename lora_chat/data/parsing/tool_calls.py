"""Read the tool calls of a message and the function descriptions of a row."""

import json
import re
from collections.abc import Mapping

from lora_chat.data.dialogue import InvalidDialogueError, ToolCall
from lora_chat.data.parsing.checked_text import check_text, read_name
from lora_chat.data.parsing.values import parse_json_text, read_list
from lora_chat.system.strict_json import STRICT_DECODER, is_nested_too_deeply

_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
_LOST_KEYS = ("result", "results", "response", "output", "observation", "error")
"""Keys of a call that would be lost although they carry meaning."""
_BLANKS = re.compile(r"\s*")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def read_calls(calls: object, where: str) -> tuple[ToolCall, ...]:
    """Parse the tool calls of a message, given as a list, as JSON text or as an object of lists."""
    calls = read_list(calls, f"{where}: `tool_calls`")
    if calls is None or calls in ([], ""):
        return ()
    if not isinstance(calls, list):
        raise InvalidDialogueError(f"{where}: `tool_calls` must be a list")
    return tuple(_read_call(call, where) for call in calls)


def read_single_call(call: object, where: str, key: str) -> tuple[ToolCall, ...]:
    """Parse the one call under a key such as OpenAI's earlier `function_call`."""
    if isinstance(call, str) and call:
        call = parse_json_text(call, f"{where}: `{key}`")
    return () if call in (None, {}, "", []) else (_read_call(call, where),)


def read_call_text(text: str, where: str) -> tuple[str | None, list[object]]:
    """Return the reasoning and the calls of a message whose text is its calls.

    The calls are JSON objects, a JSON list, or objects in `<tool_call>` tags, after optional reasoning in `<think>`.
    """
    thought = _THOUGHT.match(text)
    reasoning = thought[1].strip() or None if thought else None
    text = text[thought.end() :] if thought else text
    pieces = split_elements(text, "tool_call")
    if pieces is None and text.lstrip().startswith("<tool_call>"):
        raise InvalidDialogueError(f"{where} has text beside its <tool_call> tags, or a tag without its end")
    return reasoning, [call for piece in pieces or [text] for call in _parse_call_sequence(piece.strip(), where)]


def split_elements(text: str, tag: str) -> list[str] | None:
    """Return the contents of a text that is elements `<tag>...</tag>` and blanks; None for any other text."""
    begin = f"<{tag}>"
    *pieces, rest = text.split(f"</{tag}>")
    pieces = [piece.strip() for piece in pieces]
    if not pieces or rest.strip() or not all(piece.startswith(begin) for piece in pieces):
        return None
    contents = [piece.removeprefix(begin).strip() for piece in pieces]
    return None if any(begin in content for content in contents) else contents


def _parse_call_sequence(text: str, where: str) -> list[object]:
    """Return the JSON values that follow each other in a text; lists are taken apart."""
    calls: list[object] = []
    position = 0
    while position < len(text) or not calls:
        try:
            value, position = STRICT_DECODER.raw_decode(text, position)
        except json.JSONDecodeError:
            value, position = parse_json_text(text, where), len(text)  # raises an error with the reason
        except (ValueError, RecursionError) as error:
            reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise InvalidDialogueError(f"{where} {reason}") from None
        if isinstance(value, str):
            value = parse_json_text(value, where)
        if is_nested_too_deeply(value):
            raise InvalidDialogueError(f"{where} is nested too deeply")
        if value == []:
            raise InvalidDialogueError(f"{where} has an empty list of calls")
        calls += value if isinstance(value, list) else [value]
        blanks = _BLANKS.match(text, position)
        position = blanks.end() if blanks else position
    return calls


def _read_call(call: object, where: str) -> ToolCall:
    """Parse a tool call, given as OpenAI's object or as its function only, or as JSON text of either."""
    if isinstance(call, str):
        call = parse_json_text(call, f"{where}: a tool call")
    function = call.get("function") if isinstance(call, Mapping) else None
    if isinstance(function, str):
        is_json = function.lstrip().startswith("{")
        function = parse_json_text(function, f"{where}: a tool call") if is_json else {"name": function}
    if isinstance(call, Mapping) and isinstance(function, Mapping | None):
        function = {**{key: value for key, value in call.items() if value is not None}, **(function or {})}
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise InvalidDialogueError(f"{where}: a tool call needs a function with a name")
    lost = next((key for key in _LOST_KEYS if function.get(key) is not None), None)
    if lost:
        raise InvalidDialogueError(f"{where}: the call of {name!a} has {lost!a}, which would be lost")
    return ToolCall(
        check_text(name, where), _read_arguments(function, f"{where}: the arguments of {name!a}"), _read_id(call, where)
    )


def _read_arguments(function: Mapping[str, object], where: str) -> str:
    """Return the arguments of a call as JSON text of an object; they may be JSON text themselves, even twice."""
    values = [
        parse_json_text(value.strip() or "{}", where) if isinstance(value, str) else value
        for value in map(function.get, _ARGUMENT_KEYS)
        if value is not None
    ]
    if any(value != values[0] for value in values):
        raise InvalidDialogueError(f"{where} are there twice and differ")
    arguments = values[0] if values else {}
    if not isinstance(arguments, Mapping):
        raise InvalidDialogueError(f"{where} are not a JSON object")
    return _dump_json(arguments, where)


def _read_id(call: Mapping[str, object], where: str) -> str | None:
    """Return the identity of a call."""
    return read_name(call, "id" if call.get("id") is not None else "call_id", where)


def read_tools(tools: object) -> str | None:
    """Return the JSON text of the function descriptions, or None.

    They are a list of objects or of JSON texts, or JSON text of either; a single description is a list of one.
    """
    tools = None if isinstance(tools, str) and not tools.strip() else tools
    if isinstance(tools, str):
        tools = parse_json_text(tools, "`tools`")
    tools = read_list(tools, "`tools`")
    if isinstance(tools, Mapping) and (
        isinstance(tools.get("name"), str) or isinstance(tools.get("function"), Mapping)
    ):
        tools = [tools]
    if tools is None or tools == []:
        return None
    if isinstance(tools, list):
        tools = [parse_json_text(tool, "`tools`") if isinstance(tool, str) else tool for tool in tools]
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
