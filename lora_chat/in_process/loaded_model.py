"""An adapted model with its tokenizer, ready for `generate` of Transformers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_chat.inference.generation import greedy_config
from lora_chat.pipeline.open_chat import ChatModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_NEW_TOKENS = 256
"""Largest number of tokens of a reply, as in `lora-chat chat`."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer; `model, tokenizer = load(...)` works too.

    The tokenizer has the chat template and the padding side of training, and the model's `generation_config` has its
    stop tokens, so that `model.generate` gives the replies of `lora-chat chat`.
    """

    model: "PreTrainedModel"
    """The base with the adapter, a `PeftModel`, or a base without one."""
    tokenizer: "PreTrainedTokenizerBase"
    system: str | None
    """System message of training, which `messages` puts first."""
    chat_model: ChatModel = field(repr=False)
    """Facts that `lora_chat.generate` uses: stop tokens and the context window."""

    def __iter__(self) -> Iterator[object]:
        yield self.model
        yield self.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the ids of the tokens that end a reply."""
        return self.chat_model.stop_ids

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """Return a user's message after the system message of training, for `tokenizer.apply_chat_template`."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": prompt}]


def load_model(chat_model: ChatModel) -> LoadedModel:
    """Load a model and give it the generation settings of `lora-chat chat`: greedy, with the stop tokens of training.

    Settings of the base, such as a penalty for repetitions, are dropped, because replies of lora_chat have none.
    """
    model, tokenizer = chat_model.load(), chat_model.tokenizer
    tokenizer.padding_side = "left"
    settings = greedy_config(chat_model.stop_ids, int(tokenizer.pad_token_id), DEFAULT_NEW_TOKENS, use_cache=True)
    inner = getattr(model, "get_base_model", lambda: model)()
    for part in (model, inner):
        part.generation_config = settings
    return LoadedModel(model, tokenizer, chat_model.system, chat_model)
