"""Tool-call match: the calls of a reply against the reference."""

import json
import re
from collections.abc import Iterator, Sequence

from lora_chat.data.dialogue import InvalidDialogueError, ToolCall
from lora_chat.data.parsing.tool_calls import read_call_text, read_calls
from lora_chat.evaluation.scores.json_texts import json_equal
from lora_chat.system.strict_json import parse_strict_json

_TAG = "tool_call"
_MISTRAL_MARK = "[TOOL_CALLS]"
_LLAMA_MARK = "<|python_tag|>"
_NAME_BEFORE_JSON = re.compile(r"([\w.-]{1,200})(?:\[ARGS\])?(?=\{)")
_XML_FUNCTION = re.compile(r"<function=([^<>\n]{1,200})>")
_XML_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,200})>")
_ARGUMENT_KEYS = ("arguments", "parameters")


def tool_call_match(reference: Sequence[ToolCall], reply: str) -> bool:
    """Return whether the reply has the calls of the reference in the same order: names and arguments.

    A reply without a call equals a reference without one.
    """
    calls = parse_calls(reply)
    return calls is not None and len(calls) == len(reference) and all(map(_equals, reference, calls))


def parse_calls(reply: str) -> list[ToolCall] | None:
    """Return the calls of a generated reply without its reasoning; None if one of them is malformed.

    Calls are JSON in `<tool_call>` tags after any text (Hermes, Qwen), `<function=NAME>` in these tags (Qwen3-Coder),
    or a whole reply that is JSON with `name` and `arguments` or `parameters` (Llama, Mistral), also as `NAME{...}`.
    """
    text = reply.strip()
    try:
        if f"<{_TAG}>" in text:
            return [call for content in _split_tags(text) for call in _parse_content(content)]
        return _parse_bare(text.replace(_MISTRAL_MARK, "").removeprefix(_LLAMA_MARK).strip())
    except (InvalidDialogueError, RecursionError):
        return None


def _equals(wanted: ToolCall, call: ToolCall) -> bool:
    """Return whether two calls have the same name and equal arguments; identities are not compared."""
    return wanted.name == call.name and json_equal(json.loads(wanted.arguments), json.loads(call.arguments))


def _split_tags(text: str) -> Iterator[str]:
    """Yield the contents of the tags. Raise InvalidDialogueError if one is not closed."""
    for piece in text.split(f"<{_TAG}>")[1:]:
        content, end, _ = piece.partition(f"</{_TAG}>")
        if not end:
            raise InvalidDialogueError("a call without an end")
        yield content.strip()


def _parse_content(content: str) -> Sequence[ToolCall]:
    """Return the calls in a tag."""
    function = _XML_FUNCTION.match(content)
    if function is None:
        _, calls = read_call_text(content, "a call")
        return read_calls(calls, "a call")
    pieces = _XML_PARAMETER.split(content)[1:]
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    arguments = {name: _read_value(value.partition("</parameter>")[0].strip()) for name, value in pairs}
    return [ToolCall(function[1], json.dumps(arguments, ensure_ascii=False))]


def _read_value(text: str) -> object:
    """Return a value in XML as JSON, or its text."""
    try:
        value: object = parse_strict_json(text)
    except ValueError:
        return text
    return value


def _parse_bare(text: str) -> list[ToolCall]:
    """Return the calls of a reply without tags; none if it is an ordinary answer."""
    named = _NAME_BEFORE_JSON.match(text)
    if named is not None and text.endswith("}"):
        return list(read_calls([{"name": named[1], "arguments": text[named.end() :]}], "a call"))
    if not text.startswith(("{", "[")):
        return []
    try:
        _, calls = read_call_text(text, "a call")
    except InvalidDialogueError:
        return []
    return list(read_calls(calls, "a call")) if all(map(_is_call, calls)) else []


def _is_call(value: object) -> bool:
    """Return whether a value of JSON is a call, also in the form of OpenAI."""
    function = value.get("function", value) if isinstance(value, dict) else None
    return isinstance(function, dict) and "name" in function and any(key in function for key in _ARGUMENT_KEYS)
