"""The prompt of a conversation as a server renders it: one function for every route and for the check at the door."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import ChatMessage, ToolDescription
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.turns import TurnReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_served_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    system: str | None,
    messages: Sequence[ChatMessage],
    tools: Sequence[ToolDescription] | None = None,
    arguments: Mapping[str, object] | None = None,
) -> list[int]:
    """Return the ids of a conversation with the opening of a reply.

    The system message of training comes first unless the conversation has one. Thoughts in earlier replies are
    separated from their text, as in training. Raises DataError if the template refuses the messages.
    """
    reader = TurnReader(tokenizer, stop_ids)
    chat = [reader.extract_reasoning(_fill_message(message)) for message in messages]
    if system is not None and not any(message["role"] == "system" for message in chat):
        chat.insert(0, {"role": "system", "content": system})
    return render_ids(tokenizer, chat, add_generation_prompt=True, tools=tools, arguments=arguments)


def _fill_message(message: ChatMessage) -> ChatMessage:
    """Return a message with the keys that messages of training have."""
    filled = message | {"content": message.get("content") or ""}
    if message.get("reasoning_content"):
        filled["thinking"] = message["reasoning_content"]
    return filled
