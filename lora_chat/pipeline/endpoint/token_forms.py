"""Texts of tokens as servers show them, and the part of a reply that two models agree on."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_chat.inference.text_decoder import TextDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINK_TAG = re.compile(r"\s*</?think>\s*")
_BLANK = "\u2581"
"""Character that SentencePiece writes for a blank."""


class TokenForms:
    """The texts of a tokenizer's tokens and replies."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._decoder = TextDecoder(tokenizer)

    def read_text(self, ids: Sequence[int], has_thoughts: bool = False) -> str:
        """Return the text of the beginning of a reply, without a character of which only some bytes are there.

        With `has_thoughts`, the tags around thoughts are left out, as by servers that separate the thoughts.
        """
        text = self._decoder.decode(list(ids)).rstrip("\ufffd").strip()
        return drop_think_tags(text) if has_thoughts else text

    def decoded(self, token: int) -> str:
        """Return the text of a token as Transformers decodes it."""
        return str(self._tokenizer.decode([token]))

    def piece(self, token: int) -> str:
        """Return the text of a token with the blank before it, as llama.cpp shows it."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        return name.replace(_BLANK, " ") if isinstance(name, str) and _BLANK in name else self.decoded(token)

    def choose_form(self, ids: Sequence[int], texts: Sequence[str]) -> Callable[[int], str]:
        """Return the form in which the texts of these tokens are written."""
        pairs = list(zip(ids, texts, strict=False))
        decoded = sum(self.decoded(token) == text for token, text in pairs)
        return self.decoded if decoded >= sum(self.piece(token) == text for token, text in pairs) else self.piece


def drop_think_tags(text: str) -> str:
    """Return a text without the tags around thoughts."""
    return _THINK_TAG.sub("", text)
