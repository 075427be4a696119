"""Decode the ids of a reply, or of the continuation of a text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_chat.data.encoding.control_tokens import read_kept_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT_TOKENS = 16
"""Number of tokens of a prompt with which its continuation is decoded."""


class TextDecoder:
    """Decoder that leaves out special tokens, except for those that stay tokens in message text.

    Decoded without the tokens before it, a text may lose the blank at its start (SentencePiece).
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int] = ()) -> None:
        """Prepare the decoder for text that continues a prompt, or for text that begins after it."""
        self._tokenizer = tokenizer
        self.context = list(prompt[-_CONTEXT_TOKENS:])
        """The tokens with which a continuation is decoded."""
        names = set(read_kept_tokens(tokenizer))
        special = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._kept_special = {number for number, token in special.items() if token.content in names}
        self.hidden_ids = frozenset(special.keys() - self._kept_special)
        """Tokens that are left out of the text."""

    def decode(self, ids: Sequence[int], **_options: object) -> str:
        """Return the text of ids."""
        if not self.context:
            return self.decode_separately(ids)
        before, whole = self.decode_separately(self.context), self.decode_separately([*self.context, *map(int, ids)])
        return whole[len(before) :] if whole.startswith(before) else self.decode_separately(ids)

    def decode_separately(self, ids: Sequence[int]) -> str:
        """Return the text of ids as if nothing came before them."""
        if not self._kept_special:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        special = set(self._tokenizer.all_special_ids) - self._kept_special
        shown = [int(token) for token in ids if int(token) not in special]
        return str(self._tokenizer.decode(shown, skip_special_tokens=False))
