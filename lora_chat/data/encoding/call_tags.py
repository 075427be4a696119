"""Read calls and results in the tags of Hermes and Qwen as tool calls, if the chat template writes the same tags.

A template that writes `<tool_call>` itself has a token for it, or at least its own spelling of the JSON; as text inside
of a message, the tag would be trained in pieces. Under any other template the tags stay text.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import ChatMessage, Dialogue, InvalidDialogueError, Message, ToolCall
from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.data.parsing.tool_calls import read_calls, split_elements
from lora_chat.errors import DataError
from lora_chat.system.strict_json import parse_strict_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAG = re.compile(r"</?tool_(?:call|response)>")
_WRITTEN_CALL = re.compile(r'<tool_call>\s*\{"name": "f", "arguments": \{"a": 1\}\}\s*</tool_call>')
_WRITTEN_RESULT = re.compile(r"<tool_response>\s*some result\s*</tool_response>")


class _TagsStayTextError(ValueError):
    """The tags of a dialogue are not exactly calls and their results."""


class CallTagReader:
    """Reader of calls and results in tags, for one chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer

    def read(self, dialogue: Dialogue) -> tuple[Dialogue, int]:
        """Return the dialogue with its tags as calls and results, and the number of calls.

        It stays as it is unless the template writes the same tags, and every tag in its messages is exactly a call or
        the results of calls.
        """
        if not any(m.role == "assistant" and "<tool_call>" in m.content for m in dialogue.messages):
            return dialogue, 0
        try:
            messages = tuple(_convert_messages(dialogue.messages))
        except (_TagsStayTextError, InvalidDialogueError):
            return dialogue, 0
        if not self._writes_tags:
            return dialogue, 0
        calls = sum(len(m.tool_calls) for m in messages) - sum(len(m.tool_calls) for m in dialogue.messages)
        return replace(dialogue, messages=messages), calls

    @cached_property
    def _writes_tags(self) -> bool:
        """Return whether the template writes calls and results in these tags."""
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
        chat: list[ChatMessage] = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "f", "content": "some result"},
            {"role": "assistant", "content": "a"},
        ]
        try:
            (text,) = render_texts(self._tokenizer, [chat], add_generation_prompt=False, tools=None)
        except DataError:
            return False
        return _WRITTEN_CALL.search(text) is not None and _WRITTEN_RESULT.search(text) is not None


def _convert_messages(messages: tuple[Message, ...]) -> Iterator[Message]:
    """Yield the messages with calls and results in place of tags; raises an error if a tag is anything else."""
    follows_call = False
    for message in messages:
        if message.role == "system" or not _TAG.search(message.content):
            follows_call = bool(message.tool_calls) or (follows_call and message.role == "tool")
            yield message
        elif message.role == "assistant":
            yield _convert_calls(message)
            follows_call = True
        else:
            results = split_elements(message.content, "tool_response")
            if results is None or not follows_call:
                raise _TagsStayTextError
            yield from (replace(message, role="tool", content=result) for result in results)


def _convert_calls(message: Message) -> Message:
    """Return a reply with the calls at its end as tool calls."""
    text, tag, rest = message.content.partition("<tool_call>")
    contents = split_elements(tag + rest, "tool_call")
    if contents is None or _TAG.search(text) or message.tool_calls:
        raise _TagsStayTextError
    return replace(message, content=text.rstrip(), tool_calls=tuple(map(_read_call, contents)))


def _read_call(text: str) -> ToolCall:
    """Return the call in a tag, which has a name, arguments and nothing else."""
    try:
        call = parse_strict_json(text)
    except ValueError:
        raise _TagsStayTextError from None
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"} or not isinstance(call["arguments"], dict):
        raise _TagsStayTextError
    return read_calls([call], "a call in a tag")[0]
