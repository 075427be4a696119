"""Replies to a message or a dialogue, and continuations of a text."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import fspath
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lora_chat.config.generation_section import GenerationSection
from lora_chat.data.dialogue import ChatMessage, InvalidDialogueError
from lora_chat.data.encoding.thinking_switch import ThinkingValue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.errors import UsageError
from lora_chat.in_process.arguments import PathText
from lora_chat.in_process.loaded_model import LoadedModel
from lora_chat.pipeline.generate_text import TextRequest, encode_prompt, generate_texts, write_texts
from lora_chat.pipeline.open_adapter import TrustOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_request(
    prompt: str | Sequence[Mapping[str, object]],
    max_new_tokens: int,
    sampling: Mapping[str, object],
    system: str | None,
    *,
    chat: bool,
) -> TextRequest:
    """Return a checked request. Raise UsageError for a prompt or a setting that cannot be used."""
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens!a}: a whole number of at least 1 is needed.")
    if not isinstance(system, str | None):
        raise UsageError(f"system: a text is needed, not {type(system).__name__}.")
    try:
        generation = GenerationSection.model_validate(sampling)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        raise UsageError(f"{where}{first['msg']}.") from error
    messages: tuple[ChatMessage, ...] = ()
    if not isinstance(prompt, str):
        if not chat:
            raise UsageError("chat=False continues a text, and a list of messages has none. Fix: give a text.")
        messages, prompt = _read_messages(prompt), ""
        if system is not None and any(message["role"] == "system" for message in messages):
            raise UsageError("The messages have a system message, and `system` is given too. Fix: leave one out.")
    request = TextRequest(prompt, 1, max_new_tokens, generation, chat, system, messages)
    request.check()
    return request


def reply(
    source: LoadedModel | PathText,
    request: TextRequest,
    quantization: str | None,
    trust: TrustOptions,
    thinking: ThinkingValue | None,
    on_text: Callable[[str], object] | None,
) -> str:
    """Return the text of a model, which is loaded first unless it is loaded already."""

    def write(piece: str) -> None:
        if on_text is not None:
            on_text(piece)

    if not isinstance(source, LoadedModel):
        return generate_texts(fspath(source), request, quantization, trust, thinking, write)[0]
    if quantization is not None or thinking is not None or trust != TrustOptions():
        raise UsageError("A loaded model has its quantization, thoughts and base. Fix: give them to load().")
    chat_model = source.chat_model
    with _evaluation_mode(source.model):
        return write_texts(chat_model, source.model, encode_prompt(chat_model, request), request, write)[0]


@contextmanager
def _evaluation_mode(model: "PreTrainedModel") -> Iterator[None]:
    """Switch off dropout and gradient checkpointing in a model that the user trains, and switch them on again."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _read_messages(messages: Sequence[Mapping[str, object]]) -> tuple[ChatMessage, ...]:
    """Return the messages of a dialogue as the chat template takes them. Raise UsageError for others."""
    listed = () if isinstance(messages, Mapping | bytes) or not isinstance(messages, Iterable) else tuple(messages)
    if not all(isinstance(message, Mapping) for message in listed) or (
        not listed and not isinstance(messages, Sequence)
    ):
        raise UsageError(
            "The prompt is not a text or a list of messages. Fix: give messages with `role` and `content`."
        )
    reply = {"role": "assistant", "content": "-"}  # a dialogue of training ends with a reply
    try:
        dialogue = parse_dialogue({"messages": [*map(dict, listed), reply]})
    except (InvalidDialogueError, TypeError, ValueError) as error:
        raise UsageError(f"The prompt {error}. Fix: give a text, or messages with `role` and `content`.") from error
    prompts = dialogue.messages[:-1]
    if not prompts:
        raise UsageError("The list of messages is empty. Fix: give at least one message of the user.")
    if prompts[-1].role == "assistant":
        raise UsageError("The messages end with a reply. Fix: add a message of the user.")
    return tuple(message.as_dict for message in prompts)
