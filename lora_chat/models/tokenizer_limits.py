"""Fit a loaded tokenizer to its model: an end-of-sequence token, a pad token, and no token without an embedding."""

import logging
from typing import TYPE_CHECKING

from lora_chat.data.encoding.control_tokens import limit_token_ids
from lora_chat.errors import UnavailableError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def fit_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig | None", name: str, sample: str
) -> None:
    """Set a missing eos token from the config, and replace a pad token that is missing or has no embedding by eos.

    Padding with eos is safe because labels are set by position. Raises UnavailableError for a tokenizer without an eos
    token, and for one whose eos token or ids of a sample text have no embedding.
    """
    rows = _count_embeddings(config)
    if tokenizer.eos_token_id is None:
        _set_eos_from_config(tokenizer, config)
    if tokenizer.eos_token_id is None:
        raise UnavailableError(
            f"The tokenizer of {name} has no end-of-sequence token, so no reply would end. "
            "Fix: set eos_token in its tokenizer_config.json, or eos_token_id in its config.json."
        )
    if rows is not None:
        limit_token_ids(tokenizer, rows)
        if max([int(tokenizer.eos_token_id), *tokenizer(sample)["input_ids"]]) >= rows:
            raise UnavailableError(
                f"The tokenizer of {name} does not fit its model: it uses tokens beyond the {rows:,} embeddings. "
                "Fix: use the tokenizer files that belong to these weights."
            )
    pad = tokenizer.pad_token_id
    if pad is None or (rows is not None and pad >= rows):
        if pad is not None:
            logger.info(f"The pad token {tokenizer.pad_token} of {name} has no embedding: using {tokenizer.eos_token}.")
        tokenizer.pad_token = tokenizer.eos_token


def _count_embeddings(config: "PretrainedConfig | None") -> int | None:
    """Return the number of rows of the embedding; None if the config does not say it."""
    size = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
    return size if type(size) is int else None


def _set_eos_from_config(tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig | None") -> None:
    """Set the eos token that the model's config names; a folder with only tokenizer.json has no other place for it."""
    text_config = None if config is None else config.get_text_config()
    for part in (text_config, config):
        eos = getattr(part, "eos_token_id", None)
        first = eos[0] if isinstance(eos, list) and eos else eos
        token = tokenizer.convert_ids_to_tokens(first) if type(first) is int and 0 <= first < len(tokenizer) else None
        if isinstance(token, str):
            tokenizer.eos_token = token
            return
