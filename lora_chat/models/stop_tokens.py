"""The tokens at which a reply ends."""

import secrets
from typing import TYPE_CHECKING

from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.errors import DataError, UnavailableError
from lora_chat.models.base_model import LocalBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_stop_ids(base: LocalBase, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Ids that end a turn: the tokenizer's eos, every eos of the generation config, the template's end of a turn.

    Raises UnavailableError for a generation config that cannot be read.
    """
    from transformers import GenerationConfig

    ids = {int(tokenizer.eos_token_id)}
    if (base.folder / "generation_config.json").is_file():
        try:
            named = GenerationConfig.from_pretrained(base.folder, local_files_only=True).eos_token_id
            named = named if isinstance(named, list) else [] if named is None else [named]
            ids.update(int(number) for number in named)
        except Exception as error:
            raise UnavailableError(
                f"The generation_config.json of {base.name} cannot be read: {str(error)[:200]}"
            ) from error
    return tuple(sorted(ids | find_turn_end_ids(tokenizer)))


def find_turn_end_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the special tokens that the template writes right behind a reply; generation configs may not name them.

    A template may look for a reply that it knows and end that one otherwise, so one of the replies is random.
    """
    replies = ("x7q", f"x{secrets.token_hex(6)}q")
    chats = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": said}] for said in replies]
    try:
        texts = render_texts(tokenizer, chats, add_generation_prompt=False)
    except DataError:  # a template that refuses a plain exchange says so where dialogues are encoded
        return set()
    special = [(t.content, i) for i, t in tokenizer.added_tokens_decoder.items() if t.special and t.content]
    found = set()
    for said, text in zip(replies, texts, strict=True):
        behind = text.rpartition(said)[2].lstrip()
        found |= {i for _, i in sorted([(-len(name), i) for name, i in special if behind.startswith(name)])[:1]}
    return found
