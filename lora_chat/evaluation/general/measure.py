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
from lora_chat.evaluation.shared_measurements import SharedMeasurements
from lora_chat.inference.generation import decode_reply

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


@dataclass(frozen=True)
class PendingGeneral:
    """The replies to general items, complete after the exchange with the other processes."""

    tokenizer: "PreTrainedTokenizerBase"
    order: Sequence[int]
    """Numbers of the items in the order of their replies."""
    ids: Sequence[list[int]]

    def read(self) -> list[GeneralReply]:
        """Return the replies in the order of the items."""
        ordered = dict(zip(self.order, self.ids, strict=True))
        return [GeneralReply(tuple(ordered[n]), decode_reply(self.tokenizer, ordered[n])) for n in range(len(ordered))]


def start_general(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    items: Sequence[GeneralItem],
    model_name: str,
    shared: SharedMeasurements,
) -> PendingGeneral:
    """Generate this process's share of the greedy replies to all items, at most GENERAL_MAX_NEW_TOKENS long.

    `model_name` is for the progress message. Prompts of one kind and a similar length are answered together, because a
    batch ends with its longest reply.
    """
    if not items:
        return PendingGeneral(tokenizer, (), ())
    logger.info(f"Asking {model_name} {len(items)} general items")
    prompts = render_prompts(tokenizer, items)
    order = sorted(range(len(items)), key=lambda number: (items[number].kind, len(prompts[number])))
    pad = int(tokenizer.pad_token_id)
    chosen = [prompts[number] for number in order]
    return PendingGeneral(tokenizer, order, shared.generate(model, pad, chosen, stop_ids, GENERAL_MAX_NEW_TOKENS))
