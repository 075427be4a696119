"""Greedy replies of a model to the items of a general set."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.limits import GENERAL_MAX_NEW_TOKENS
from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.data.encoding.thinking_switch import find_switch
from lora_chat.data.encoding.tokenizer import TextTokenizer
from lora_chat.evaluation.general.items import GeneralItem
from lora_chat.inference.generation import decode_reply, generate_ids

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneralReply:
    """The greedy reply of a model, as token ids without the end of the turn, and as text."""

    ids: tuple[int, ...]
    text: str


def render_prompts(tokenizer: "PreTrainedTokenizerBase", items: Sequence[GeneralItem]) -> list[list[int]]:
    """Return the token ids of the items' prompts. Raise DataError if the chat template refuses them.

    The system message of training is left out, because it limits the replies to the task: a model that follows it
    would refuse a general question, and that is not forgetting. Thoughts are switched off, because a reply is short.
    """
    switch = find_switch(tokenizer)
    text_tokenizer = TextTokenizer(tokenizer)
    texts = render_texts(
        tokenizer,
        [text_tokenizer.mark([{"role": "user", "content": item.prompt}]) for item in items],
        add_generation_prompt=True,
        arguments=switch.arguments("off") if switch else {},
    )
    return [tokenized.ids for tokenized in text_tokenizer.tokenize(texts)]


def measure_general(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    items: Sequence[GeneralItem],
    model_name: str,
) -> list[GeneralReply]:
    """Return the greedy replies of a model to all items, at most GENERAL_MAX_NEW_TOKENS long.

    `model_name` is for the progress message. Prompts of one kind and a similar length are answered together, because a
    batch ends with its longest reply.
    """
    if not items:
        return []
    logger.info(f"Asking {model_name} {len(items)} general items")
    prompts = render_prompts(tokenizer, items)
    order = sorted(range(len(items)), key=lambda number: (items[number].kind, len(prompts[number])))
    pad = int(tokenizer.pad_token_id)
    replies = generate_ids(model, pad, [prompts[number] for number in order], stop_ids, GENERAL_MAX_NEW_TOKENS)
    ordered = dict(zip(order, replies, strict=True))
    return [GeneralReply(tuple(ordered[n]), decode_reply(tokenizer, ordered[n])) for n in range(len(items))]
