"""The held-out prompts that both models answer."""

import random
from typing import TYPE_CHECKING

from lora_chat.data.dataset import DialogueSet
from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.thinking_switch import thinking_arguments
from lora_chat.evaluation.metrics import ReplyItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE_SEED = 0


def read_reply_items(
    dialogues: DialogueSet, tokenizer: "PreTrainedTokenizerBase", *, samples: int, replies: int
) -> list[ReplyItem]:
    """Return the first `samples` prompts of a set, and a random selection of others up to `replies` prompts in all.

    The prompts keep their order in the set, which may be sorted by topic, so that the first ones say little about it.
    """
    count = max(samples, replies)
    units = len(dialogues)
    selected = set(range(units))
    if units > count:
        # Some more than `count`, because not every dialogue has an answer after a prompt.
        rest = list(range(samples, units))
        random.Random(_SAMPLE_SEED).shuffle(rest)
        selected = {*range(samples), *rest[: 2 * (count - samples)]}
    items: list[ReplyItem] = []
    if not count:
        return items
    for index, dialogue in enumerate(dialogues.read()):
        if len(items) < samples or index in selected:
            item = make_reply_item(dialogue, tokenizer)
            if item is not None:
                items.append(item)
    return items if len(items) <= count else _thin_out(items, samples, count)


def _thin_out(items: list[ReplyItem], samples: int, count: int) -> list[ReplyItem]:
    """Return the first `samples` items and a random selection of the others, `count` in all, in their order."""
    selected = sorted(random.Random(_SAMPLE_SEED).sample(range(samples, len(items)), count - samples))
    return [*items[:samples], *(items[i] for i in selected)]


def make_reply_item(dialogue: Dialogue | list[int], tokenizer: "PreTrainedTokenizerBase") -> ReplyItem | None:
    """Split a dialogue before its first answer, or a block of token ids in the middle; None without an answer."""
    if isinstance(dialogue, list):
        prompt_length = len(dialogue) // 2 or 1
        return ReplyItem(
            dialogue[:prompt_length],
            tokenizer.decode(dialogue[:prompt_length]),
            tokenizer.decode(dialogue[prompt_length:]),
            is_text=True,
        )
    reply_index = dialogue.first_answer
    if reply_index is None:
        return None
    prompt, reply = dialogue.as_dicts[:reply_index], dialogue.messages[reply_index]
    arguments = thinking_arguments(tokenizer, reply.as_dict)
    ids = render_ids(tokenizer, prompt, add_generation_prompt=True, tools=dialogue.tool_list, arguments=arguments)
    return ReplyItem(ids, prompt[-1]["content"], _message_text(reply), tuple(reply.tool_calls))


def _message_text(message: Message) -> str:
    """Return the text of a message, or its tool calls."""
    return message.content or " ".join(f"{call.name}({call.arguments})" for call in message.tool_calls)
