"""The tokens of an adapter, installed in the tokenizer of its base."""

from typing import TYPE_CHECKING

from lora_chat.data.encoding.kept_tokens import keep_tokens
from lora_chat.errors import DataError, IntegrityError
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.base_model import LocalBase
from lora_chat.models.stop_tokens import read_stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def install_trained_tokens(
    stored: StoredAdapter, base: LocalBase, tokenizer: "PreTrainedTokenizerBase", *, run_template: bool
) -> None:
    """Keep the tokens in message text that training kept. Raise IntegrityError for one that cannot be kept."""
    if stored.identity is None or not stored.identity.kept_tokens:
        return
    stop_ids = read_stop_ids(base, tokenizer) if run_template else stored.identity.stops or ()
    try:
        keep_tokens(tokenizer, stored.identity.kept_tokens, stop_ids, run_template=run_template)
    except DataError as error:
        raise IntegrityError(f"{stored.name} keeps a token that this base cannot keep ({error}).") from error
