"""The prompts that an endpoint is asked: held-out dialogues of a run, dialogues of a file, or built-in questions."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.data.dialogue import ChatMessage
from lora_chat.errors import DataError
from lora_chat.export.parity.default_prompts import DEFAULT_QUESTIONS
from lora_chat.export.parity.samples import select_parity_samples
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.open_adapter import OpenAdapter
from lora_chat.pipeline.served_prompt import render_served_prompt

MAX_PROMPTS = 12
_MAX_PROMPT_TOKENS = 2_048
_PLAIN_KEYS = {"role", "content"}


@dataclass(frozen=True)
class EndpointPrompt:
    """A conversation that is sent, and its ids as training encodes it."""

    messages: tuple[ChatMessage, ...]
    ids: tuple[int, ...]


def select_prompts(
    opened: OpenAdapter, stop_ids: Sequence[int], data: str | None
) -> tuple[tuple[EndpointPrompt, ...], str]:
    """Return at most MAX_PROMPTS conversations, and a name for them.

    Conversations with tools, calls or thoughts are left out, because servers read those from a reply in different ways.
    """
    messages: list[tuple[ChatMessage, ...]] = []
    kind = "built-in questions"
    if data is not None or opened.run is not None:
        validation = prepare_evaluation(opened, EvaluationFiles(data)).validation
        samples = select_parity_samples(validation, MAX_PROMPTS) if len(validation) else []
        messages = [sample.messages for sample in samples if _is_plain(sample.messages) and not sample.tools]
        kind = "prompts of that file" if data is not None else "held-out prompts of the run"
    if data is not None and not messages:
        raise DataError(f"{data} has no conversation without tools to ask. Fix: name another file with --data.")
    if not messages:
        kind = "built-in questions"
        messages = [({"role": "user", "content": question},) for question in DEFAULT_QUESTIONS]
    prompts = []
    for conversation in messages:
        if opened.system is not None and not any(message["role"] == "system" for message in conversation):
            conversation = ({"role": "system", "content": opened.system}, *conversation)
        ids = tuple(render_served_prompt(opened.adapter.tokenizer, stop_ids, opened.system, conversation))
        if len(ids) <= _MAX_PROMPT_TOKENS:
            prompts.append(EndpointPrompt(conversation, ids))
    if not prompts:
        raise DataError(f"All prompts have more than {_MAX_PROMPT_TOKENS:,} tokens. Fix: name others with --data FILE.")
    return tuple(prompts[:MAX_PROMPTS]), kind


def _is_plain(messages: Sequence[ChatMessage]) -> bool:
    return bool(messages) and all(
        isinstance(message.get("content"), str) and not {key for key in message if message[key]} - _PLAIN_KEYS
        for message in messages
    )
