"""The texts of a dialogue, each with the number of its message."""

from collections.abc import Iterator
from typing import NamedTuple

from lora_chat.audit.json_strings import parse_json_container, rewrite_strings
from lora_chat.data.dialogue import Dialogue


class TextField(NamedTuple):
    """A text that is checked as a whole."""

    message: int
    """Number of the message, counted from 1. 0 means the descriptions of the tools."""
    text: str
    start: int = 0
    """Index of the first character after the JSON key, which is only context."""


def list_text_fields(dialogue: Dialogue) -> list[TextField]:
    """Return the contents, reasoning, tool calls and tool descriptions of a dialogue. JSON is split into strings."""
    fields: list[TextField] = []
    for number, message in enumerate(dialogue.messages, 1):
        fields.extend(_split_text(number, message.content))
        if message.reasoning is not None:
            fields.extend(_split_text(number, message.reasoning))
        for call in message.tool_calls:
            fields.extend(_split_text(number, call.arguments))
            fields.append(TextField(number, call.name))
            if call.id:
                fields.append(TextField(number, call.id))
        fields.extend(TextField(number, name) for name in (message.name, message.tool_call_id) if name)
    if dialogue.tools:
        fields.extend(_split_text(0, dialogue.tools))
    return fields


def _split_text(number: int, text: str) -> Iterator[TextField]:
    """Yield a text, or the strings of a text that is JSON."""
    value = parse_json_container(text)
    if value is None:
        yield TextField(number, text)
        return
    fields: list[TextField] = []

    def collect(context: str, leaf: str) -> str:
        fields.append(TextField(number, context + leaf, len(context)))
        return leaf

    rewrite_strings(value, collect)
    yield from fields
