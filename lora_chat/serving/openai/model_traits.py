"""Facts about the tokenizer and the chat template of a model, computed once."""

import threading
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import ChatMessage, ToolCall, ToolDescription
from lora_chat.data.encoding.thinking_switch import ThinkingSwitch, find_switch, read_thinking
from lora_chat.data.encoding.tokenizer import TextTokenizer, read_bos_ids
from lora_chat.data.encoding.turns import TurnReader, opens_reasoning
from lora_chat.errors import DataError
from lora_chat.evaluation.measurement import ReplyItem
from lora_chat.evaluation.written_calls import are_calls_readable
from lora_chat.inference.text_decoder import TextDecoder
from lora_chat.serving.openai.reply_parser import ReplyForm
from lora_chat.serving.openai.token_texts import TokenTexts

if TYPE_CHECKING:
    from lora_chat.pipeline.admitted_model import AdmittedModel

_PROMPT_END_TOKENS = 16
"""Number of tokens at the end of a prompt that show whether it opens reasoning."""
_SAMPLE_TOOL: ToolDescription = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}
_SAMPLE_CALL = ToolCall("look", '{"at": "sky"}')
_ATTRIBUTE = "lora_chat_traits"
"""Attribute of a tokenizer with its facts, so that they are forgotten together with the tokenizer."""
_lock = threading.Lock()


class ModelTraits:
    """Facts about the tokenizer and the chat template of a model. They take time, so they are not read in a loop."""

    def __init__(self, model: "AdmittedModel") -> None:
        self._tokenizer, self._stop_ids = model.tokenizer, model.stop_ids
        self.texts = TokenTexts(model.tokenizer)

    @cached_property
    def writes_reasoning(self) -> bool:
        """Return whether replies may begin with reasoning."""
        return TurnReader(self._tokenizer, self._stop_ids).supports_reasoning

    @cached_property
    def switch(self) -> ThinkingSwitch | None:
        """Return the switch for thoughts of the chat template."""
        return find_switch(self._tokenizer)

    @cached_property
    def offers_tools(self) -> bool:
        """Return whether the chat template writes tools, and calls of them are read."""
        render = partial(TurnReader(self._tokenizer, self._stop_ids).render, add_generation_prompt=True)
        chats: list[list[ChatMessage]] = [[{"role": "user", "content": "q"}]]
        try:
            return render(chats, [_SAMPLE_TOOL]) != render(chats, None) and self.reads_calls
        except DataError:
            return False

    @cached_property
    def reads_calls(self) -> bool:
        """Return whether calls as the chat template writes them are read as calls."""
        item = ReplyItem([], "", "", (_SAMPLE_CALL,))
        return are_calls_readable([item], self._tokenizer, self._stop_ids)

    def describe_replies(self, prompt: Sequence[int], tool_names: frozenset[str] | None) -> ReplyForm:
        """Return the form of the replies to a prompt."""
        return ReplyForm(
            writes_reasoning=self.writes_reasoning,
            opens_reasoning=opens_reasoning(self._tokenizer.decode(prompt[-_PROMPT_END_TOKENS:])),
            strips_empty_block=read_thinking(self._tokenizer) is not None,
            tool_names=tool_names,
        )

    def make_decoder(self, prompt: Sequence[int] = ()) -> TextDecoder:
        """Return the decoder of a reply, or of the text that continues a prompt."""
        return TextDecoder(self._tokenizer, prompt)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a plain text as in training. Raises DataError."""
        return read_bos_ids(self._tokenizer) + TextTokenizer(self._tokenizer).encode_plain_text(text)


def traits_of(model: "AdmittedModel") -> ModelTraits:
    """Return the facts about a model."""
    with _lock:
        traits: ModelTraits | None = getattr(model.tokenizer, _ATTRIBUTE, None)
        if traits is None:
            traits = ModelTraits(model)
            setattr(model.tokenizer, _ATTRIBUTE, traits)
        return traits
