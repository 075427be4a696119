"""The held-out prompts of a blind judgement, in an order that is random and the same every time."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from lora_chat.data.dataset import DialogueSet
from lora_chat.data.dialogue import ChatMessage, Dialogue
from lora_chat.evaluation.reply_items import make_reply_item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ORDER_SEED = 0
_SPARE_PROMPTS = 20
"""Further candidates, because not every dialogue has a reply after a prompt."""


@dataclass(frozen=True)
class ShownMessage:
    """A message before the replies, as the judge reads it."""

    role: str
    text: str


@dataclass(frozen=True)
class JudgePrompt:
    """A held-out prompt."""

    index: int
    """Index of its dialogue in the held-out set."""
    context: tuple[ShownMessage, ...]
    ids: tuple[int, ...]
    """Token ids in the chat template of the run, which identify the prompt."""
    ids_a: tuple[int, ...]
    """Token ids that A continues, in its own chat template; the base has that of the run."""
    ids_b: tuple[int, ...]
    is_text: bool
    """Whether it is plain text without a chat template."""


def select_prompts(
    dialogues: DialogueSet, tokenizers: "Sequence[PreTrainedTokenizerBase]", count: int
) -> list[JudgePrompt]:
    """Return held-out prompts in an order that is random and the same every time.

    The tokenizers are those of the run, of A and of B. The first prompts are the same for every `count`.
    """
    order = list(range(len(dialogues)))
    random.Random(_ORDER_SEED).shuffle(order)
    candidates = order[: 3 * count + _SPARE_PROMPTS]
    wanted, prompts = set(candidates), {}
    for index, dialogue in enumerate(islice(dialogues.read(), max(candidates, default=-1) + 1)):
        if index in wanted and (prompt := _make_prompt(index, dialogue, tokenizers)) is not None:
            prompts[index] = prompt
    return [prompts[index] for index in candidates if index in prompts][:count]


def _make_prompt(
    index: int, dialogue: Dialogue | list[int], tokenizers: "Sequence[PreTrainedTokenizerBase]"
) -> JudgePrompt | None:
    """Return the prompt of a dialogue in the chat template of each tokenizer; None without a reply after a prompt."""
    made = {id(tokenizer): make_reply_item(dialogue, tokenizer) for tokenizer in tokenizers}
    items = [made[id(tokenizer)] for tokenizer in tokenizers]
    first = items[0]
    if first is None:
        return None
    ids = [tuple(item.prompt_ids) for item in items if item is not None]
    if isinstance(dialogue, list):
        context = [ShownMessage("text", first.prompt)]
    else:
        messages = dialogue.as_dicts[: dialogue.first_answer]
        names = [str(tool.get("function", tool).get("name", "")) for tool in dialogue.tool_list or ()]
        context = [ShownMessage("tools", ", ".join(names))] if names else []
        context += [ShownMessage(str(message["role"]), format_message(message)) for message in messages]
    return JudgePrompt(index, tuple(context), ids[0], ids[1], ids[2], first.is_text)


def format_message(message: ChatMessage) -> str:
    """Return the text of a message, followed by its calls."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    texts = (f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})" for call in calls)
    lines = [str(message.get("content") or ""), *texts]
    return "\n".join(line for line in lines if line)
