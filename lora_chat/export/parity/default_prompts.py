"""Parity samples for adapters without held-out dialogues: built-in questions with the replies of the adapted model."""

from typing import TYPE_CHECKING

from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.encode import IGNORE_INDEX
from lora_chat.export.parity.samples import ParitySample, make_parity_sample
from lora_chat.inference.generation import generate_ids
from lora_chat.system.gpu_memory import release_gpu_memory

if TYPE_CHECKING:
    from lora_chat.export.merge import AdapterBlend

_MAX_NEW_TOKENS = 48
DEFAULT_QUESTIONS = (
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


def make_default_samples(blend: "AdapterBlend", system: str | None) -> list[ParitySample]:
    """Return a sample for each question, with the greedy reply of the adapted model as the supervised tokens.

    Loads the adapted model, and releases its memory on a GPU.
    """
    system_messages = [{"role": "system", "content": system}] if system is not None else []
    chats = [[*system_messages, {"role": "user", "content": question}] for question in DEFAULT_QUESTIONS]
    prompts = [render_ids(blend.tokenizer, chat, add_generation_prompt=True) for chat in chats]
    model = blend.load_adapted_model()
    replies = generate_ids(model, int(blend.tokenizer.pad_token_id), prompts, blend.stop_ids, _MAX_NEW_TOKENS)
    del model
    release_gpu_memory()
    samples = []
    for chat, prompt, reply in zip(chats, prompts, replies, strict=True):
        reply_ids = [*reply, *([blend.stop_ids[0]] if len(reply) < _MAX_NEW_TOKENS else [])]
        samples.append(make_parity_sample([*prompt, *reply_ids], [IGNORE_INDEX] * len(prompt) + reply_ids, chat))
    return [sample for sample in samples if sample.positions]
