"""The texts of a dialogue, one by one, each with the message it stands in."""

from collections.abc import Iterator
from typing import NamedTuple

from lora_chat.audit.json_strings import parse_container, rewrite_strings
from lora_chat.data.dialogue import Dialogue


class Piece(NamedTuple):
    """A text that is looked at as a whole."""

    message: int
    """Counted from 1; 0 for the descriptions of the tools."""
    text: str
    start: int = 0
    """Characters before this one are the JSON key, which only gives the context."""


def split_pieces(dialogue: Dialogue) -> list[Piece]:
    """All that is said, thought, handed to tools or told about them; JSON is taken apart into its strings."""
    pieces: list[Piece] = []
    for number, message in enumerate(dialogue.messages, 1):
        pieces.extend(_split(number, message.content))
        if message.reasoning is not None:
            pieces.extend(_split(number, message.reasoning))
        for call in message.tool_calls:
            pieces.extend(_split(number, call.arguments))
            pieces.append(Piece(number, call.name))
            if call.id:
                pieces.append(Piece(number, call.id))
        pieces.extend(Piece(number, name) for name in (message.name, message.tool_call_id) if name)
    if dialogue.tools:
        pieces.extend(_split(0, dialogue.tools))
    return pieces


def _split(number: int, text: str) -> Iterator[Piece]:
    value = parse_container(text)
    if value is None:
        yield Piece(number, text)
        return
    found: list[Piece] = []

    def note(context: str, leaf: str) -> str:
        found.append(Piece(number, context + leaf, len(context)))
        return leaf

    rewrite_strings(value, note)
    yield from found
