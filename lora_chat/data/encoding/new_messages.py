"""Find the messages of a prompt that no earlier row contains, for templates that rewrite earlier turns."""

from collections.abc import Sequence
from itertools import pairwise

from lora_chat.data.dialogue import ChatMessage
from lora_chat.data.encoding.turns import ReplyRequest, Turn, TurnReader, common_prefix_length
from lora_chat.errors import DataError

_COMPARED_CHARACTERS = 64
"""Characters of a message that the prompt must have where the message is found."""


def find_new_messages(reader: TurnReader, request: ReplyRequest, turns: Sequence[Turn]) -> list[int]:
    """Return for each turn the character of its prompt at which the messages after the reply before begin.

    The place is found by rendering the prompt with another first letter of the first new message. If the template
    then writes other text before it, or leaves the message out, the result is the end of the prompt.
    """
    begins = [0]
    for earlier, turn in pairwise(turns):
        first_new = earlier.message_index + 1
        if turn.prompt.startswith(earlier.text):
            begins.append(len(earlier.text))
        elif first_new == turn.message_index:
            begins.append(len(turn.prompt))
        else:
            begins.append(_find_message(reader, request, turn, first_new))
    return begins


def _find_message(reader: TurnReader, request: ReplyRequest, turn: Turn, index: int) -> int:
    """Return the first character of a message in the prompt of a turn; the prompt's length if it is not found."""
    message = request.messages[index]
    content = str(message["content"]).strip()
    changed = [*request.messages[: turn.message_index]]
    changed[index] = _change_first_letter(message, content)
    try:
        arguments = reader.choose_arguments(request.messages[turn.message_index])
        (prompt,) = reader.render([changed], request.tools, add_generation_prompt=True, arguments=arguments)
    except DataError:
        return len(turn.prompt)
    begin = common_prefix_length(prompt, turn.prompt)
    is_there = bool(content) and turn.prompt.startswith(content[:_COMPARED_CHARACTERS], begin)
    return begin if is_there else len(turn.prompt)


def _change_first_letter(message: ChatMessage, content: str) -> ChatMessage:
    """Return a message with another first letter."""
    return message | {"content": ("b" if content[:1] == "a" else "a") + content[1:]}
