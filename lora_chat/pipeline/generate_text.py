"""Continuations of a plain text, or answers to it, by a run, parcel, adapter or base."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GenerationSection
from lora_chat.data.dialogue import ChatMessage, InvalidDialogueError
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.thinking_switch import ThinkingValue
from lora_chat.data.encoding.tokenizer import TextTokenizer, read_bos_ids
from lora_chat.data.parsing.checked_text import check_text
from lora_chat.errors import UsageError
from lora_chat.inference.generation import decode_continuation, generate_ids, generate_replies, stream_reply
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.pipeline.open_chat import ChatModel, find_chat_model
from lora_chat.pipeline.served_prompt import render_served_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextRequest:
    """The text to continue, or to answer, and how."""

    text: str
    count: int
    """Number of continuations; each draws its own random numbers."""
    max_new_tokens: int
    generation: GenerationSection
    is_chat: bool = False
    """Whether the text is a message that is answered through the chat template."""
    system: str | None = None
    """System message of an answer; None for that of training."""
    messages: tuple[ChatMessage, ...] = ()
    """Checked messages of a dialogue that is answered in place of `text`."""

    def check(self) -> None:
        """Raise UsageError for an empty or unreadable text, and for settings that exclude each other."""
        if not self.text.strip() and not self.messages:
            raise UsageError("The prompt is empty. Fix: give a text, such as 'Once upon a time'.")
        try:
            check_text(self.text, "The prompt")
            check_text(self.system or "", "The system message")
        except InvalidDialogueError as error:
            raise UsageError(f"{error}. Fix: give text in UTF-8 without that character.") from error
        if self.system is not None and not self.is_chat:
            raise UsageError("--system belongs to --chat: a plain text has no system message. Fix: add --chat.")
        if self.count > 1 and self.generation.is_greedy:
            raise UsageError(
                f"--n {self.count} would give the same text {self.count} times, because replies are greedy at "
                "temperature 0. Fix: add --temperature 0.8."
            )


def generate_texts(
    source: str,
    request: TextRequest,
    mode: str | None,
    trust: TrustOptions,
    thinking: ThinkingValue | None = None,
    write: Callable[[str], None] | None = None,
) -> list[str]:
    """Return the texts of a request; a single one is also passed to `write` piece by piece.

    Raises UsageError before the weights load if the request cannot be fulfilled.
    """
    request.check()
    chat_model = find_chat_model(source, mode, trust, thinking, shows_system=request.is_chat and request.system is None)
    prompt = encode_prompt(chat_model, request)
    return write_texts(chat_model, chat_model.load(), prompt, request, write)


def encode_prompt(chat_model: ChatModel, request: TextRequest) -> list[int]:
    """Return the ids of the prompt. Raise UsageError if prompt and reply exceed the context window."""
    prompt = make_prompt(chat_model.tokenizer, request, chat_model.system, chat_model.stop_ids)
    _check_length(chat_model, len(prompt), request.max_new_tokens)
    return prompt


def write_texts(
    chat_model: ChatModel,
    model: "PreTrainedModel",
    prompt: Sequence[int],
    request: TextRequest,
    write: Callable[[str], None] | None = None,
) -> list[str]:
    """Return the texts that follow a prompt; a single one is also passed to `write` piece by piece."""
    tokenizer, limit = chat_model.tokenizer, request.max_new_tokens
    stop_ids = chat_model.stop_ids  # with the EOS that training puts after each plain text
    if write and request.count == 1:
        continues = not request.is_chat
        return [
            stream_reply(model, tokenizer, prompt, stop_ids, limit, write, request.generation, continues_text=continues)
        ]
    prompts = [list(prompt)] * request.count
    if request.is_chat:
        return generate_replies(model, tokenizer, prompts, stop_ids, limit, request.generation)
    pad = int(tokenizer.pad_token_id)
    replies = generate_ids(model, pad, prompts, stop_ids, limit, generation=request.generation)
    return [decode_continuation(tokenizer, prompt, ids) for ids in replies]


def make_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    request: TextRequest,
    system: str | None = None,
    stop_ids: Sequence[int] = (),
) -> list[int]:
    """Return the ids of a prompt: those of training for a plain text, or a chat with the opening of a reply.

    `system` is the system message if the request has none. Raises DataError if the chat template refuses the text.
    """
    if not request.is_chat:
        return read_bos_ids(tokenizer) + TextTokenizer(tokenizer).encode_plain_text(request.text)
    system = system if request.system is None else request.system
    if request.messages:
        return render_served_prompt(tokenizer, stop_ids, system, request.messages)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return render_ids(tokenizer, [*messages, {"role": "user", "content": request.text}], add_generation_prompt=True)


def _check_length(chat_model: ChatModel, prompt_tokens: int, max_new_tokens: int) -> None:
    """Raise UsageError if prompt and reply exceed the context window of the base."""
    if chat_model.positions is None or prompt_tokens + max_new_tokens <= chat_model.positions:
        return
    room = chat_model.positions - prompt_tokens
    fix = f"--max-new-tokens {room}, or a shorter prompt" if room > 0 else "give a shorter prompt"
    raise UsageError(
        f"The prompt takes {prompt_tokens:,} tokens, and with {max_new_tokens:,} more it exceeds the context window of "
        f"{chat_model.positions:,} tokens. Fix: {fix}."
    )
