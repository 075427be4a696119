"""The texts of a dialogue, one by one, each with the message it stands in."""

from collections.abc import Iterator
from typing import NamedTuple

from lora_chat.audit.json_strings import parse_json_container, rewrite_strings
from lora_chat.data.dialogue import Dialogue


class TextField(NamedTuple):
    """A text that is looked at as a whole."""

    message: int
    """Counted from 1; 0 for the descriptions of the tools."""
    text: str
    start: int = 0
    """Characters before this one are the JSON key, which only gives the context."""


def list_text_fields(dialogue: Dialogue) -> list[TextField]:
    """All that is said, thought, handed to tools or told about them; JSON is taken apart into its strings."""
    pieces: list[TextField] = []
    for number, message in enumerate(dialogue.messages, 1):
        pieces.extend(_split_text(number, message.content))
        if message.reasoning is not None:
            pieces.extend(_split_text(number, message.reasoning))
        for call in message.tool_calls:
            pieces.extend(_split_text(number, call.arguments))
            pieces.append(TextField(number, call.name))
            if call.id:
                pieces.append(TextField(number, call.id))
        pieces.extend(TextField(number, name) for name in (message.name, message.tool_call_id) if name)
    if dialogue.tools:
        pieces.extend(_split_text(0, dialogue.tools))
    return pieces


def _split_text(number: int, text: str) -> Iterator[TextField]:
    value = parse_json_container(text)
    if value is None:
        yield TextField(number, text)
        return
    found: list[TextField] = []

    def note(context: str, leaf: str) -> str:
        found.append(TextField(number, context + leaf, len(context)))
        return leaf

    rewrite_strings(value, note)
    yield from found
