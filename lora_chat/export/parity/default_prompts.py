"""Probes where no held-out dialogues are at hand: what the adapted model itself says to a few plain questions."""

from typing import TYPE_CHECKING

from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.encode import IGNORE_INDEX
from lora_chat.export.parity.samples import Probe, make_probe
from lora_chat.inference.generation import generate_ids

if TYPE_CHECKING:
    from lora_chat.export.merge import Mixture

_TOKENS = 48
_QUESTIONS = (
    "Hello! Who are you, and what can you do for me?",
    "What are your opening hours?",
    "Explain in two sentences how a bicycle stays upright.",
    "Write a short poem about rain.",
    "List three things to pack for a day in the mountains.",
    "What is 17 times 23? Show your steps.",
    "Wie komme ich am besten zum Bahnhof?",
    "请用一句话介绍一下你自己。",
    "def add(a, b):\n    return a + b\n\nWhat does this do?",
    "I feel a bit tired today.",
    "Translate to French: The cat sleeps on the chair.",
    "Name the capital of Japan and one dish from there.",
)


def imagine_probes(mixture: "Mixture", system: str | None) -> list[Probe]:
    """The questions with the adapted model's greedy replies, whose tokens are compared.

    Loads the adapted model for it.
    """
    head = [{"role": "system", "content": system}] if system is not None else []
    chats = [[*head, {"role": "user", "content": question}] for question in _QUESTIONS]
    prompts = [render_ids(mixture.tokenizer, chat, reply_follows=True) for chat in chats]
    model = mixture.load()
    replies = generate_ids(model, int(mixture.tokenizer.pad_token_id), prompts, mixture.stop_ids, _TOKENS)
    probes = []
    for chat, prompt, reply in zip(chats, prompts, replies, strict=True):
        said = [*reply, *([mixture.stop_ids[0]] if len(reply) < _TOKENS else [])]
        probes.append(make_probe([*prompt, *said], [IGNORE_INDEX] * len(prompt) + said, chat))
    return [probe for probe in probes if probe.places]
