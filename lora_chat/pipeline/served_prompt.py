"""The prompt of a conversation as a server renders it: one function for every route and for the check at the door."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import ChatMessage, ToolDescription
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.encode import stringify_arguments
from lora_chat.data.encoding.turns import TurnReader
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_served_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    system: str | None,
    messages: Sequence[ChatMessage],
    tools: Sequence[ToolDescription] | None = None,
    arguments: Mapping[str, object] | None = None,
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Return the ids of a conversation, with the opening of a reply unless it is not wanted.

    The system message of training comes first unless the conversation has one. Thoughts in earlier replies are
    separated from their text, as in training. Raises DataError if the template refuses the messages.
    """
    reader = TurnReader(tokenizer, stop_ids)
    chat = [reader.extract_reasoning(_fill_message(message)) for message in messages]
    if system is not None and not any(message["role"] == "system" for message in chat):
        chat.insert(0, {"role": "system", "content": system})
    render = partial(
        render_ids, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools, arguments=arguments
    )
    try:
        return render(chat)
    except DataError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        # Some templates expect the arguments of tool calls as text and fail on an object, as in training.
        return render([stringify_arguments(message) for message in chat])


def _fill_message(message: ChatMessage) -> ChatMessage:
    """Return a message with the keys that messages of training have."""
    filled = message | {"content": message.get("content") or ""}
    if message.get("reasoning_content"):
        filled["thinking"] = message["reasoning_content"]
    return filled
