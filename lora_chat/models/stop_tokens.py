"""The tokens at which a reply ends."""

import secrets
from typing import TYPE_CHECKING

from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.errors import DataError, UnavailableError
from lora_chat.models.base_model import LocalBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_stop_ids(base: LocalBase, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return the ids that end a turn: the eos of tokenizer and generation config, and the template's end of a turn.

    Raises UnavailableError for a generation config that cannot be read.
    """
    from transformers import GenerationConfig

    ids = {int(tokenizer.eos_token_id)}
    if (base.folder / "generation_config.json").is_file():
        try:
            eos = GenerationConfig.from_pretrained(base.folder, local_files_only=True).eos_token_id
            eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
            ids.update(int(token_id) for token_id in eos_ids)
        except Exception as error:
            raise UnavailableError(
                f"The generation_config.json of {base.name} cannot be read: {str(error)[:200]}"
            ) from error
    return tuple(sorted(ids | find_turn_end_ids(tokenizer)))


def find_turn_end_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the special tokens that the template writes directly after a reply, which generation configs may lack.

    One of the two sample replies is random, because a template could recognize a fixed one and end it differently.
    """
    replies = ("x7q", f"x{secrets.token_hex(6)}q")
    chats = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": reply}] for reply in replies]
    try:
        texts = render_texts(tokenizer, chats, add_generation_prompt=False)
    except DataError:  # a template that refuses a plain exchange is reported when dialogues are encoded
        return set()
    special = [(t.content, i) for i, t in tokenizer.added_tokens_decoder.items() if t.special and t.content]
    turn_end_ids = set()
    for reply, text in zip(replies, texts, strict=True):
        rest = text.rpartition(reply)[2].lstrip()
        # The longest matching token counts.
        turn_end_ids |= {i for _, i in sorted([(-len(name), i) for name, i in special if rest.startswith(name)])[:1]}
    return turn_end_ids
