"""The tokens at which a reply ends."""

from typing import TYPE_CHECKING

from lora_chat.dialogues.chat_template import render_texts
from lora_chat.errors import BaseUnavailableError, DataError
from lora_chat.models.base_model import FoundBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_stop_ids(base: FoundBase, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Ids that end a turn: the tokenizer's eos, every eos of the generation config, the template's end of a turn.

    Raises BaseUnavailableError for a generation config that cannot be read.
    """
    from transformers import GenerationConfig

    ids = {int(tokenizer.eos_token_id)}
    if (base.folder / "generation_config.json").is_file():
        try:
            named = GenerationConfig.from_pretrained(base.folder, local_files_only=True).eos_token_id
            named = named if isinstance(named, list) else [] if named is None else [named]
            ids.update(int(number) for number in named)
        except Exception as error:
            raise BaseUnavailableError(
                f"The generation_config.json of {base.name} cannot be read: {str(error)[:200]}"
            ) from error
    return tuple(sorted(ids | find_turn_end(tokenizer)))


def find_turn_end(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The special token that the template writes right behind a reply; generation configs may not name it."""
    said = "x7q"
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": said}]
    try:
        (text,) = render_texts(tokenizer, [chat], reply_follows=False)
    except DataError:  # a template that refuses a plain exchange says so where dialogues are encoded
        return set()
    behind = text.rpartition(said)[2].lstrip()
    special = [(t.content, i) for i, t in tokenizer.added_tokens_decoder.items() if t.special and t.content]
    return {i for _, i in sorted([(-len(name), i) for name, i in special if behind.startswith(name)])[:1]}
